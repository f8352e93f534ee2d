# shellcheck shell=bash
# Nodes of a job that infra/launch/preflight.py found unfit are drained; ParallelCluster replaces a drained node.
# infra/launch/slurm/train.sbatch reads this file when there are some, with LOG_DIR, MAX_BAD_NODES, count and say(); it ends the job with
# 69 where draining is not the answer.

unfit=("$LOG_DIR"/unfit/*)
for file in "${unfit[@]}"; do
  say "${file##*/} is not fit: $(paste -sd ';' "$file")"
done
read -r drained 2>/dev/null <"$LOG_DIR/drained" || drained=0
kinds=$(sed -s -n '1s/:.*//p' "${unfit[@]}" | sort -u | wc -l)
# shellcheck disable=SC2154 # count is train.sbatch's: the nodes that it runs on
if ((count > 1 && ${#unfit[@]} == count && kinds == 1)); then
  say "all $count nodes fail in the same way, so it is not the nodes: nothing is drained, the job is not queued again"
  exit 69
elif ((drained + ${#unfit[@]} > MAX_BAD_NODES)); then
  say "$drained nodes were drained before, and MAX_BAD_NODES is $MAX_BAD_NODES: nothing is drained, the job is not queued again"
  exit 69
fi
for file in "${unfit[@]}"; do
  node=${file##*/} change=(scontrol update nodename="${file##*/}" state=DRAIN reason="preflight: $(head -n 1 "$file")")
  # Only Slurm's own user and root may; ParallelCluster's user may become root.
  if ! "${change[@]}" 2>/dev/null && ! sudo -n "${change[@]}" 2>/dev/null; then
    say "$node may not be drained by $(id -un); an administrator has to: ${change[*]}"
    exit 69
  fi
  say "$node is drained"
done
echo "$((drained + ${#unfit[@]}))" >"$LOG_DIR/drained"
