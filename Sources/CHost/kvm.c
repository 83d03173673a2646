#define _GNU_SOURCE
#include "kvm.h"

#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int roost_ioctl(int fd, uint64_t request, void *argument) { return ioctl(fd, request, argument); }
int roost_ioctl_value(int fd, uint64_t request, uint64_t argument) { return ioctl(fd, request, argument); }

static void ignore(int signal) { (void)signal; }

// The first real-time signal is glibc's to give: nothing else here uses one.
void roost_allow_kicks(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = ignore;
    action.sa_flags = SA_RESTART;
    sigaction(SIGRTMIN, &action, NULL);
    sigset_t kicks;
    sigemptyset(&kicks);
    sigaddset(&kicks, SIGRTMIN);
    pthread_sigmask(SIG_UNBLOCK, &kicks, NULL);
}

int32_t roost_thread_number(void) { return (int32_t)syscall(SYS_gettid); }

// A thread that has ended meanwhile is no error.
void roost_kick(int32_t thread) { syscall(SYS_tgkill, getpid(), thread, SIGRTMIN); }
