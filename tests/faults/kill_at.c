/* Preloaded into a run (LD_PRELOAD): kills its process group at an exact call, as a power cut would.
 *
 *   KILL_AT=NUMBER:before|after    of the calls of rename, link, unlink and fsync, counted from 1 in each process
 *   KILL_PATH=TEXT                 counting only those on paths that contain it
 *   KILL_RANK=NUMBER               in the rank of this number alone
 *   KILL_TRACE=FILE                and with a line for each of them in this file: "CALL PATH"
 *
 * The variables are read at each call, so a process that was forked with the library can be given them later.
 * Without KILL_AT and KILL_TRACE nothing happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int seen; /* calls that count, of this process */

static int counts(const char *call, const char *path) {
  const char *rank = getenv("KILL_RANK"), *mine = getenv("RANK"), *part = getenv("KILL_PATH");
  const char *at = getenv("KILL_AT"), *trace = getenv("KILL_TRACE");
  if (!at && !trace) return 0;
  if (rank && (!mine || strcmp(rank, mine))) return 0;
  if (part && !strstr(path, part)) return 0;
  if (trace) {
    char line[4200];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    int file = open(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file >= 0) {
      if (write(file, line, (size_t)length) < 0) perror("kill_at");
      close(file);
    }
  }
  return at && ++seen == atoi(at);
}

static void die_if(int now, const char *when) {
  const char *at = getenv("KILL_AT");
  if (now && at && strstr(at, when)) kill(0, SIGKILL); /* the whole group: the rank and its loader workers */
}

#define AROUND(call, path, run)                      \
  do {                                               \
    int now = counts(call, path);                    \
    die_if(now, ":before");                          \
    int result = run;                                \
    die_if(now, ":after");                           \
    return result;                                   \
  } while (0)

#define REAL(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

int rename(const char *from, const char *to) {
  AROUND("rename", to, REAL("rename", const char *, const char *)(from, to));
}

int link(const char *from, const char *to) { AROUND("link", to, REAL("link", const char *, const char *)(from, to)); }

int unlink(const char *path) { AROUND("unlink", path, REAL("unlink", const char *)(path)); }

int fsync(int file) {
  char place[64], path[4096] = "";
  snprintf(place, sizeof place, "/proc/self/fd/%d", file);
  ssize_t length = readlink(place, path, sizeof path - 1);
  path[length > 0 ? length : 0] = '\0';
  AROUND("fsync", path, REAL("fsync", int)(file));
}
