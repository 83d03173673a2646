// Copies and compares state blocks for CPU/Lockstep: all but the attention word, which other threads write, and the
// maps of pages, which are hints; the vector area only when asked for.
#ifndef ROOST_LOCKSTEP_H
#define ROOST_LOCKSTEP_H
#include <string.h>
#include "vcpu.h"

#define ROOST_AFTER(field) (offsetof(roost_vcpu, field) + sizeof(((roost_vcpu *)0)->field))

static inline void roost_copy_state(roost_vcpu *to, const roost_vcpu *from, int vectors) {
    const size_t attention = offsetof(roost_vcpu, attention), filter = offsetof(roost_vcpu, code_filter);
    memcpy(to, from, attention);
    memcpy((char *)to + ROOST_AFTER(attention), (const char *)from + ROOST_AFTER(attention),
           filter - ROOST_AFTER(attention));
    const size_t end = vectors ? sizeof(roost_vcpu) : offsetof(roost_vcpu, xsave);
    memcpy((char *)to + ROOST_AFTER(huge_pages), (const char *)from + ROOST_AFTER(huge_pages),
           end - ROOST_AFTER(huge_pages));
}

static inline int roost_equal_state(const roost_vcpu *a, const roost_vcpu *b, int vectors) {
    const size_t attention = offsetof(roost_vcpu, attention), filter = offsetof(roost_vcpu, code_filter);
    if (memcmp(a, b, attention) != 0) return 0;
    if (memcmp((const char *)a + ROOST_AFTER(attention), (const char *)b + ROOST_AFTER(attention),
               filter - ROOST_AFTER(attention)) != 0)
        return 0;
    const size_t end = vectors ? sizeof(roost_vcpu) : offsetof(roost_vcpu, xsave);
    return memcmp((const char *)a + ROOST_AFTER(huge_pages), (const char *)b + ROOST_AFTER(huge_pages),
                  end - ROOST_AFTER(huge_pages)) == 0;
}

#endif
