#define _GNU_SOURCE
#include "CHost.h"
#include <unistd.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>

int roost_memfd_create(const char *name) { return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING); }
int roost_seal_size(int fd) { return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }
// A second mapping of a shared anonymous one (mremap(2) with an old size of zero).
void *roost_map_again(void *mapping, size_t size) { return mremap(mapping, 0, size, MREMAP_MAYMOVE); }
// Large blocks come from mmap and go back when they are freed, however large those before were (mallopt(3)).
void roost_keep_heap_small(void) { mallopt(M_MMAP_THRESHOLD, 256 * 1024); }
void roost_trim_heap(void) { malloc_trim(0); }
int64_t roost_random(void *buffer, size_t size) { return getrandom(buffer, size, 0); }

// Names the calling thread, and gives its signal handlers a stack of their own: they restore the terminal after an overflow.
void roost_name_thread(const char *name) {
    static __thread char stack[32768];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    pthread_setname_np(pthread_self(), name);
}

// Opens /dev/null wherever descriptors 0 to 2 are closed, so that no file of ours gets their numbers.
void roost_open_standard_streams(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) == -1) open("/dev/null", O_RDWR);
}

int roost_accept(int fd) { return accept4(fd, NULL, NULL, SOCK_CLOEXEC); }

int roost_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

int roost_spawn_close_from(posix_spawn_file_actions_t *actions, int fd) {
    return posix_spawn_file_actions_addclosefrom_np(actions, fd);
}
