// Calls of generated code.
#ifndef ROOST_VECTOR_H
#define ROOST_VECTOR_H
#include <stdint.h>

// Runs one vector instruction on a guest's saved state: XSAVE area, memory operand, general registers, arithmetic flags.
static inline void roost_call_thunk(const void *code, void *xsave, void *memory, void *gpr, void *flags) {
    ((void (*)(void *, void *, void *, void *))code)(xsave, memory, gpr, flags);
}
#endif
