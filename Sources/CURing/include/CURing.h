// liburing for Swift. Its own header is for C with GNU's extensions: as a module it declares parts of libc another way than
// the modules of libc do, so that it can't be imported beside them.
#ifndef CURING_H
#define CURING_H
#include <stdint.h>

typedef struct roost_ring roost_ring;

// Makes a ring, for one thread; 0 or an errno.
int roost_ring_make(uint32_t entries, roost_ring **made);
void roost_ring_free(roost_ring *ring);
// Asks for a list of pieces (struct iovec) to be filled from a file, or written to it; 0 if the ring is full.
int roost_ring_move(
    roost_ring *ring, int descriptor, const void *pieces, uint32_t count, uint64_t offset, int fills, uint64_t tag);
// Asks to be told, once, when a descriptor can be read; 0 if the ring is full.
int roost_ring_watch(roost_ring *ring, int descriptor, uint64_t tag);
// Has the kernel take what was asked for, and waits for so many completions; negative: an errno.
int roost_ring_submit(roost_ring *ring, uint32_t waits);
// Takes a completion; 0 if there is none.
int roost_ring_next(roost_ring *ring, uint64_t *tag, int32_t *result);

#endif
