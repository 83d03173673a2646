// The terminal's mode, restored on every way out. Everything here that a signal handler runs is async-signal-safe.
#define _GNU_SOURCE
#include "CHost.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved, raw;
static volatile sig_atomic_t terminal = -1;  // descriptor whose mode was changed
static struct sigaction before[65];
static const int endings[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};

// tcsetattr from the background stops the process unless SIGTTOU is blocked.
static void set_mode(int fd, const struct termios *mode) {
    sigset_t block, old;
    sigemptyset(&block);
    sigaddset(&block, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &block, &old);
    tcsetattr(fd, TCSANOW, mode);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void roost_terminal_restore(void) {
    int fd = terminal;
    if (fd >= 0) set_mode(fd, &saved);
    terminal = -1;
}

// Whoever handled the signal before does so again: a synchronous fault happens anew on return, others are raised anew.
static void on_ending(int number, siginfo_t *info, void *context) {
    int error = errno;
    (void)context;
    roost_terminal_restore();
    sigaction(number, &before[number], NULL);
    if (info->si_code <= 0 || number == SIGHUP || number == SIGINT || number == SIGQUIT || number == SIGTERM) raise(number);
    errno = error;
}

static void on_continue(int number) {
    int error = errno;
    (void)number;
    if (terminal >= 0 && tcgetpgrp(terminal) == getpgrp()) set_mode(terminal, &raw);
    errno = error;
}

int roost_terminal_raw(int fd) {
    static int installed;
    if (!isatty(fd) || tcgetpgrp(fd) != getpgrp() || tcgetattr(fd, &saved) != 0) return 0;
    raw = saved;
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    if (!installed) {
        installed = 1;
        atexit(roost_terminal_restore);
        struct sigaction action = {.sa_sigaction = on_ending, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigfillset(&action.sa_mask);
        for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
            sigaction(endings[i], NULL, &before[endings[i]]);
            // What the parent had ignored (nohup) stays ignored.
            if (before[endings[i]].sa_handler != SIG_IGN) sigaction(endings[i], &action, NULL);
        }
        struct sigaction again = {.sa_handler = on_continue, .sa_flags = SA_RESTART};
        sigaction(SIGCONT, &again, NULL);
    }
    terminal = fd;
    set_mode(fd, &raw);
    return 1;
}

int roost_terminal_is_raw(void) { return terminal >= 0; }

void roost_ignore_pipe_signals(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTTIN, SIG_IGN);
    // A file at the process's size limit: an error of that write, not our end.
    signal(SIGXFSZ, SIG_IGN);
    // Whoever started us may have had these blocked; we must be endable.
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGHUP);
    sigaddset(&ends, SIGQUIT);
    pthread_sigmask(SIG_UNBLOCK, &ends, NULL);
}

// Opens the controlling end of a new pseudo-terminal, non-blocking, and names the other end.
int roost_pseudo_terminal(char *path, size_t size) {
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    if (grantpt(fd) != 0 || unlockpt(fd) != 0 || ptsname_r(fd, path, size) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}
