// C and assembly: the few things Swift cannot say.
#ifndef CHOST_H
#define CHOST_H
#include "alu.h"
#include "checksum.h"
#include "disk.h"
#include "folder.h"
#include "kvm.h"
#include "stub.h"
#include "vcpu.h"
#include "lockstep.h"
#include "vector.h"

// Headers that the Swift overlay of glibc leaves out.
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

// memfd_create(2), close-on-exec; glibc declares it only under _GNU_SOURCE.
static const int roost_seek_data = 3;              // SEEK_DATA, the same
static const int roost_seek_hole = 4;              // SEEK_HOLE, the same
static const int roost_timer_absolute = TFD_TIMER_ABSTIME;

static inline uint64_t roost_read_tsc(void) { return __builtin_ia32_rdtsc(); }
static inline void roost_pause(void) { __builtin_ia32_pause(); }
static inline void roost_increment(uint32_t *count) { __atomic_fetch_add(count, 1, __ATOMIC_RELEASE); }
static inline uint32_t roost_load(const uint32_t *count) { return __atomic_load_n(count, __ATOMIC_ACQUIRE); }
static inline void roost_decrement(uint32_t *count) { __atomic_fetch_sub(count, 1, __ATOMIC_RELEASE); }
// Sets bits and returns what was there; a full barrier, so that a writer of a page and who marks it see each other.
static inline uint8_t roost_set_flags(uint8_t *flags, uint8_t bits) {
    return __atomic_fetch_or(flags, bits, __ATOMIC_SEQ_CST);
}
static inline void roost_clear_flags(uint8_t *flags, uint8_t bits) {
    __atomic_fetch_and(flags, (uint8_t)~bits, __ATOMIC_SEQ_CST);
}
int roost_memfd_create(const char *name);
int roost_seal_size(int fd);                       // nobody makes the memfd shorter or longer any more
void *roost_map_again(void *mapping, size_t size);
void roost_keep_heap_small(void);
void roost_trim_heap(void);
int64_t roost_random(void *buffer, size_t size);   // getrandom(2)
int roost_accept(int fd);                          // accept4(2), close-on-exec
int roost_pipe(int ends[2]);                       // pipe2(2), close-on-exec
int roost_spawn_close_from(posix_spawn_file_actions_t *actions, int fd);  // of the child: this one and all above

// Raw terminal mode, restored at exit, at signals that end the process, and after a stop; false if not a terminal of ours.
int roost_terminal_raw(int fd);
void roost_terminal_restore(void);
int roost_terminal_is_raw(void);
int roost_pseudo_terminal(char *path, size_t size);  // controlling end, non-blocking; path of the other
void roost_ignore_pipe_signals(void);
void roost_open_standard_streams(void);
void roost_name_thread(const char *name);          // of the calling thread, at most 15 characters

#endif
