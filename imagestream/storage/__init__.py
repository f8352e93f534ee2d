"""Where files are: a folder or a bucket in S3."""
