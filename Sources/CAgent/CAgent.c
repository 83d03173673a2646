#define _GNU_SOURCE
#include "CAgent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/random.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

// The group of terminals, `tty`.
enum { terminal_group = 5 };

static void close_pair(const int *pair) {
    if (pair[0] >= 0) close(pair[0]);
    if (pair[1] >= 0) close(pair[1]);
}

// In the child: never returns. What fails is told through `report`.
static void become(
    char *const *arguments, char *const *environment, const char *folder, int folder_is_optional, uint32_t user,
    uint32_t group, const uint32_t *groups, size_t group_count, const int *streams, int has_terminal, int report) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
    int failure = 0;
    setsid();
    if (has_terminal && ioctl(streams[0], TIOCSCTTY, 0) < 0) failure = errno;
    for (int n = 0; n < 3 && !failure; n++) if (dup2(streams[n], n) < 0) failure = errno;
    // They are the user's: it may open its /dev/stdout, say. Without, it can still use them as they are.
    for (int n = 0; n < (has_terminal ? 1 : 3) && !failure; n++)
        if (fchown(n, user, has_terminal ? terminal_group : group) < 0) break;
    if (!failure && setgroups(group_count, groups) < 0) failure = errno;
    if (!failure && setresgid(group, group, group) < 0) failure = errno;
    if (!failure && setresuid(user, user, user) < 0) failure = errno;
    if (!failure && chdir(folder) < 0 && !(folder_is_optional && chdir("/") == 0)) failure = errno;
    if (!failure) {
        environ = (char **)environment;
        execvp(arguments[0], arguments);
        failure = errno;
    }
    if (write(report, &failure, sizeof failure) < 0) _exit(126);
    _exit(127);
}

static int open_streams(const roost_terminal_size *terminal, int ours[3], int theirs[3]) {
    if (terminal->isWanted) {
        struct winsize size = {.ws_row = terminal->rows, .ws_col = terminal->columns};
        int controller, device;
        if (openpty(&controller, &device, NULL, NULL, &size) < 0) return errno;
        fcntl(controller, F_SETFD, FD_CLOEXEC);
        fcntl(device, F_SETFD, FD_CLOEXEC);
        ours[1] = controller;
        theirs[0] = theirs[1] = theirs[2] = device;
        return 0;
    }
    for (int n = 0; n < 3; n++) {
        int pair[2];
        if (pipe2(pair, O_CLOEXEC) < 0) return errno;
        ours[n] = pair[n == 0 ? 1 : 0];
        theirs[n] = pair[n == 0 ? 0 : 1];
    }
    return 0;
}

int roost_start_program(
    char *const *arguments, char *const *environment, const char *folder, int folder_is_optional, uint32_t user,
    uint32_t group, const uint32_t *groups, size_t group_count, const roost_terminal_size *terminal,
    roost_program *program) {
    int ours[3] = {-1, -1, -1}, theirs[3] = {-1, -1, -1}, report[2] = {-1, -1};
    int failure = open_streams(terminal, ours, theirs);
    if (!failure && pipe2(report, O_CLOEXEC) < 0) failure = errno;
    pid_t child = -1;
    if (!failure && (child = fork()) < 0) failure = errno;
    if (child == 0)
        become(arguments, environment, folder, folder_is_optional, user, group, groups, group_count, theirs,
               terminal->isWanted, report[1]);
    if (report[1] >= 0) close(report[1]);
    report[1] = -1;
    // The end of the pipe without a word is the program's first instruction.
    if (!failure && read(report[0], &failure, sizeof failure) <= 0) failure = 0;
    close_pair(report);
    close(theirs[0]);
    if (theirs[1] != theirs[0]) {
        close(theirs[1]);
        close(theirs[2]);
    }
    if (failure) {
        for (int n = 0; n < 3; n++) if (ours[n] >= 0) close(ours[n]);
        return failure;
    }
    for (int n = 0; n < 3; n++) if (ours[n] >= 0) fcntl(ours[n], F_SETFL, fcntl(ours[n], F_GETFL) | O_NONBLOCK);
    *program = (roost_program){.process = child, .input = ours[0], .output = ours[1], .errors = ours[2]};
    return 0;
}

void roost_set_terminal_size(int terminal, uint16_t columns, uint16_t rows) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(terminal, TIOCSWINSZ, &size);
}

int roost_vsock_listen(uint32_t port) {
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0) return -1;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0) return -1;
    return listener;
}

int roost_accept(int listener) {
    struct sockaddr_vm address;
    socklen_t length = sizeof address;
    int stream = accept4(listener, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (stream < 0) return -1;
    // Programs of the guest could connect too (CID 1): root's shell is not for them.
    if (address.svm_cid == VMADDR_CID_HOST) return stream;
    close(stream);
    return -1;
}

int roost_child_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

void roost_drain_signals(int descriptor) {
    struct signalfd_siginfo info;
    while (read(descriptor, &info, sizeof info) > 0) {}
}

int roost_set_clock(uint64_t nanoseconds) {
    struct timespec time = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &time) < 0 ? errno : 0;
}

int roost_add_entropy(const void *bytes, size_t count) {
    if (count == 0 || count > 4096) return EINVAL;
    struct rand_pool_info *pool = malloc(sizeof *pool + count);
    if (!pool) return ENOMEM;
    int device = open("/dev/urandom", O_WRONLY | O_CLOEXEC), failure = device < 0 ? errno : 0;
    pool->entropy_count = (int)count * 8;
    pool->buf_size = (int)count;
    memcpy(pool->buf, bytes, count);
    if (!failure && ioctl(device, RNDADDENTROPY, pool) < 0) failure = errno;
    // What it has handed out so far is the parent's too: begin anew.
    if (!failure && ioctl(device, RNDRESEEDCRNG) < 0) failure = errno;
    if (device >= 0) close(device);
    free(pool);
    return failure;
}

int roost_set_link_address(const char *interface, const uint8_t *address) {
    struct ifreq request = {0}, link = {0};
    if (strlen(interface) >= IFNAMSIZ) return EINVAL;
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), failure = 0;
    if (any < 0) return errno;
    strcpy(request.ifr_name, interface);
    strcpy(link.ifr_name, interface);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, address, 6);
    if (ioctl(any, SIOCSIFHWADDR, &request) < 0) failure = errno;
    if (failure == EBUSY && ioctl(any, SIOCGIFFLAGS, &link) == 0) {
        short flags = link.ifr_flags;
        link.ifr_flags &= ~IFF_UP;
        failure = ioctl(any, SIOCSIFFLAGS, &link) < 0 || ioctl(any, SIOCSIFHWADDR, &request) < 0 ? errno : 0;
        link.ifr_flags = flags;
        if (ioctl(any, SIOCSIFFLAGS, &link) < 0 && !failure) failure = errno;
    }
    close(any);
    return failure;
}

int roost_address_text(const struct sockaddr *address, char *text, size_t size) {
    const void *bytes;
    if (address->sa_family == AF_INET) bytes = &((const struct sockaddr_in *)address)->sin_addr;
    else if (address->sa_family == AF_INET6) bytes = &((const struct sockaddr_in6 *)address)->sin6_addr;
    else return EAFNOSUPPORT;
    return inet_ntop(address->sa_family, bytes, text, (socklen_t)size) ? 0 : errno;
}
