/* Preloaded into a process: counts its changes of files below a folder, and at the n-th kills it or lets the change fail.
 *
 * Counted are the calls of libc that write, create, rename, resize, flush or delete. The count is shared with the parent of a fork.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, TORN, FULL, BROKEN, SHORT };

static char folder[PATH_MAX];
static size_t length;
static long at;
static int mode;
static long *calls;

__attribute__((constructor)) static void begin(void) {
    calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void faults_arm(const char *below, long number, int kind) {
    length = strlen(below);
    at = number;
    mode = kind;
    *calls = 0;
    memcpy(folder, below, length + 1);
}

long faults_calls(void) { return *calls; }

static int concerns(const char *path) {
    char full[PATH_MAX];
    if (!length || !path) return 0;
    if (path[0] == '/') return !strncmp(path, folder, length);
    return getcwd(full, sizeof full) && !strncmp(full, folder, length);
}

static int concerns_fd(int fd) {
    char link[32], path[PATH_MAX];
    if (!length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return concerns(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: fail with errno; 2: half of it, then die; 3: half of it. `takes`: whether the change needs space. */
static int due(int takes) {
    long number = __sync_add_and_fetch(calls, 1);
    if (mode == FULL && number >= at && takes) return errno = ENOSPC, 1;
    if (number != at) return 0;
    if (mode == KILL) die();
    if (mode == BROKEN) return errno = EIO, 1;
    return mode == TORN ? 2 : mode == SHORT ? 3 : 0;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define CHANGE(concerned, takes, call) \
    int fate = (concerned) ? due(takes) : 0; \
    if (fate == 1) return -1; \
    int result = (call); \
    if (fate == 2) die(); \
    return result

#define WRITES(concerned, half, whole) \
    int fate = (concerned) ? due(1) : 0; \
    if (fate == 1) return -1; \
    if (fate == 0 || count < 2) { ssize_t n = (whole); if (fate == 2) die(); return n; } \
    ssize_t written = (half); \
    if (fate == 2) die(); \
    return written

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    WRITES(concerns_fd(fd), real(fd, data, count / 2), real(fd, data, count));
}

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
    WRITES(concerns_fd(fd), real(fd, data, count / 2, offset), real(fd, data, count, offset));
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) { return pwrite64(fd, data, count, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    WRITES(concerns_fd(fd), real(fd, parts, count / 2), real(fd, parts, count));
}

int openat64(int at_fd, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t permissions = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    CHANGE(flags & (O_CREAT | O_TRUNC) && concerns(path), 1, real(at_fd, path, flags, permissions));
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t permissions = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return openat64(AT_FDCWD, path, flags, permissions);
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t permissions = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return openat64(AT_FDCWD, path, flags, permissions);
}
int openat(int at_fd, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t permissions = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return openat64(at_fd, path, flags, permissions);
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    CHANGE(concerns(to), 0, real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    CHANGE(concerns(to), 0, real(a, from, b, to));
}
int link(const char *from, const char *to) {
    REAL(int, link, const char *, const char *);
    CHANGE(concerns(to), 1, real(from, to));
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    CHANGE(concerns(path), 0, real(path));
}
int unlinkat(int fd, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    CHANGE(concerns(path), 0, real(fd, path, flags));
}
int mkdir(const char *path, mode_t permissions) {
    REAL(int, mkdir, const char *, mode_t);
    CHANGE(concerns(path), 1, real(path, permissions));
}
int chmod(const char *path, mode_t permissions) {
    REAL(int, chmod, const char *, mode_t);
    CHANGE(concerns(path), 0, real(path, permissions));
}
int fsync(int fd) {
    REAL(int, fsync, int);
    CHANGE(concerns_fd(fd), 0, real(fd));
}
int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    CHANGE(concerns_fd(fd), 0, real(fd));
}
int ftruncate64(int fd, off_t size) {
    REAL(int, ftruncate64, int, off_t);
    CHANGE(concerns_fd(fd), 1, real(fd, size));
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
