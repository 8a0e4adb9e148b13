/* Fault injection for one process: from the n-th operation on files below a folder on, or only in it, operations of
 * the C library fail with an error number, or the process is killed. Loaded with LD_PRELOAD, armed by fault_arm.
 * A full disk (ENOSPC) lets files be opened for reading and removed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static size_t root_length;
static long count, first = -1;
static int fault_errno, persistent;

void fault_arm(const char *folder, long number, int error, int from_then_on) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    count = 0;
    fault_errno = error;
    persistent = from_then_on;
    first = number;
}

long fault_count(void) { return count; }

/* Whether this operation fails; the error 0 kills the process. */
static int strikes(void) {
    long number = count++;
    if (first < 0 || number < first || (number > first && !persistent)) return 0;
    if (fault_errno == 0) kill(getpid(), SIGKILL);
    errno = fault_errno;
    return 1;
}

static int is_below(const char *path) {
    char cwd[4096];
    if (first < 0 || path == NULL) return 0;
    if (path[0] != '/') return getcwd(cwd, sizeof cwd) != NULL && strncmp(cwd, root, root_length) == 0;
    return strncmp(path, root, root_length) == 0;
}

static int is_open_below(int descriptor) {
    char link[64], path[4096];
    if (first < 0 || descriptor < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, root, root_length) == 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CAN_FAIL(flags) (fault_errno != ENOSPC || (flags) & (O_WRONLY | O_RDWR | O_CREAT))

ssize_t write(int descriptor, const void *buffer, size_t size) {
    return is_open_below(descriptor) && strikes() ? -1 : NEXT(write)(descriptor, buffer, size);
}
ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    return is_open_below(descriptor) && strikes() ? -1 : NEXT(writev)(descriptor, parts, number);
}
ssize_t pwrite(int descriptor, const void *buffer, size_t size, off_t offset) {
    return is_open_below(descriptor) && strikes() ? -1 : NEXT(pwrite)(descriptor, buffer, size, offset);
}
ssize_t pwrite64(int descriptor, const void *buffer, size_t size, off64_t offset) {
    return is_open_below(descriptor) && strikes() ? -1 : NEXT(pwrite64)(descriptor, buffer, size, offset);
}
int fdatasync(int descriptor) { return is_open_below(descriptor) && strikes() ? -1 : NEXT(fdatasync)(descriptor); }
int fsync(int descriptor) { return is_open_below(descriptor) && strikes() ? -1 : NEXT(fsync)(descriptor); }
int rename(const char *from, const char *to) { return is_below(to) && strikes() ? -1 : NEXT(rename)(from, to); }
int unlink(const char *path) { return fault_errno != ENOSPC && is_below(path) && strikes() ? -1 : NEXT(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return is_below(path) && strikes() ? -1 : NEXT(mkdir)(path, mode); }

#define OPEN(name)                                                                          \
    int name(const char *path, int flags, ...) {                                            \
        va_list list;                                                                       \
        va_start(list, flags);                                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;             \
        va_end(list);                                                                       \
        if (CAN_FAIL(flags) && is_below(path) && strikes()) return -1;                        \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode); \
    }
#define OPENAT(name)                                                                        \
    int name(int folder, const char *path, int flags, ...) {                                \
        va_list list;                                                                       \
        va_start(list, flags);                                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;             \
        va_end(list);                                                                       \
        if (CAN_FAIL(flags) && is_below(path) && strikes()) return -1;                        \
        return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name))(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
