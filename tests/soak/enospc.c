/* A full disk, for the processes that load this with LD_PRELOAD.
 *
 * SOAK_DISKS is a list of path prefixes, with colons between. While a file PREFIX.full exists, whatever would take room
 * in a file whose path begins with PREFIX, or make it safe there, fails with ENOSPC. Reading goes on, as it does on a
 * full disk. Stricter than one: blocks that a file has already cannot be written either.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_full(int fd) {
    const char *disks = getenv("SOAK_DISKS");
    struct stat what;
    /* Sockets and pipes are most of what is written to: they are told apart first. */
    if (!disks || fstat(fd, &what) || !S_ISREG(what.st_mode)) return 0;
    char link[64], path[PATH_MAX], flag[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    for (const char *at = disks; *at;) {
        size_t size = strcspn(at, ":");
        if (size && size + sizeof ".full" <= sizeof flag && !strncmp(path, at, size)) {
            memcpy(flag, at, size);
            strcpy(flag + size, ".full");
            if (!access(flag, F_OK)) return 1;
        }
        at += size + (at[size] == ':');
    }
    return 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    int before = errno; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); \
    if (is_full(fd)) return errno = ENOSPC, -1; \
    errno = before

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); return real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); return real(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { REAL(writev); return real(fd, parts, count); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return real(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size) { REAL(fallocate); return real(fd, mode, at, size); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { REAL(fallocate64); return real(fd, mode, at, size); }
int fsync(int fd) { REAL(fsync); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return real(fd); }
