#include "CURing.h"
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>

struct roost_ring {
    struct io_uring uring;
};

int roost_ring_make(uint32_t entries, roost_ring **made) {
    roost_ring *ring = calloc(1, sizeof *ring);
    if (!ring) return ENOMEM;
    // Completions wait for the thread's next call, where the kernel knows that (6.0): no interrupt between.
    const uint32_t attempts[] = {1u << 8 /* COOP_TASKRUN */ | 1u << 12 /* SINGLE_ISSUER */, 0};
    int result = 0;
    for (int n = 0; n < 2; n++) {
        struct io_uring_params parameters = {.flags = attempts[n]};
        result = io_uring_queue_init_params(entries, &ring->uring, &parameters);
        if (result != -EINVAL) break;
    }
    const uint32_t needed = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;
    if (result == 0 && (ring->uring.features & needed) != needed) {
        io_uring_queue_exit(&ring->uring);
        result = -ENOSYS;
    }
    if (result != 0) {
        free(ring);
        return -result;
    }
    *made = ring;
    return 0;
}

void roost_ring_free(roost_ring *ring) {
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

int roost_ring_move(
    roost_ring *ring, int descriptor, const void *pieces, uint32_t count, uint64_t offset, int fills, uint64_t tag) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->uring);
    if (!entry) return 0;
    if (fills) io_uring_prep_readv(entry, descriptor, pieces, count, offset);
    else io_uring_prep_writev(entry, descriptor, pieces, count, offset);
    io_uring_sqe_set_data64(entry, tag);
    return 1;
}

int roost_ring_watch(roost_ring *ring, int descriptor, uint64_t tag) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->uring);
    if (!entry) return 0;
    io_uring_prep_poll_add(entry, descriptor, POLLIN);
    io_uring_sqe_set_data64(entry, tag);
    return 1;
}

int roost_ring_submit(roost_ring *ring, uint32_t waits) { return io_uring_submit_and_wait(&ring->uring, waits); }

int roost_ring_next(roost_ring *ring, uint64_t *tag, int32_t *result) {
    struct io_uring_cqe *completion;
    if (io_uring_peek_cqe(&ring->uring, &completion) != 0 || !completion) return 0;
    *tag = completion->user_data;
    *result = completion->res;
    io_uring_cqe_seen(&ring->uring, completion);
    return 1;
}
