// A process that runs guest user code natively under ptrace (see Sources/HostOS/StubProcess.swift).
#ifndef ROOST_STUB_H
#define ROOST_STUB_H
#include <stdint.h>
#include <stddef.h>
#include <sys/user.h>

// Where the stub's own pages lie in it: one of code, then the list of mappings that it makes, read-only.
#define ROOST_STUB_ADDRESS 0x6f5ac3d00000ull
#define ROOST_STUB_LIST_PAGES 16
#define ROOST_STUB_SIZE 69632  // 1 + 16 pages
#define ROOST_STUB_LIST_ENTRIES 1000
// Guest pages can be mapped below this.
#define ROOST_STUB_LIMIT 0x7ffffffff000ull

// A system call of the stub; `number` ROOST_STUB_END ends the list.
typedef struct { uint64_t number, arguments[6]; } roost_stub_call;
#define ROOST_STUB_END (~0ull)
#define ROOST_STUB_MAP 9        // mmap
#define ROOST_STUB_UNMAP 11     // munmap
#define ROOST_STUB_PROTECT 10   // mprotect

typedef struct { int32_t pid, pidfd; } roost_stub;

// Starts a stub whose descriptor 0 is `memory`; `control` is a memfd of ROOST_STUB_SIZE bytes. 0 or an errno.
int roost_stub_start(int memory, int control, roost_stub *stub);
// Copies the stub's code to its page; the bytes copied.
size_t roost_stub_code(void *page);
// Where in its page the list is worked off from.
size_t roost_stub_list_entry(void);
// Kills and reaps it.
void roost_stub_end(const roost_stub *stub);

int roost_stub_get_registers(int pid, struct user_regs_struct *registers);
int roost_stub_set_registers(int pid, const struct user_regs_struct *registers);
// The extended state, at most `size` bytes; the size there is, or -errno.
int64_t roost_stub_get_extended(int pid, void *buffer, size_t size);
int roost_stub_set_extended(int pid, const void *buffer, size_t size);
// Lets it run: its system calls stopped and left undone, or not.
int roost_stub_resume(int pid, int emulate);
// Waits for its stop; the wait status, or -errno.
int roost_stub_wait(int pid);
// si_code and si_addr of the signal that stopped it.
int roost_stub_signal(int pid, int32_t *code, uint64_t *address);
// Writes a byte to a page that is mapped privately; 0 or an errno.
int roost_stub_patch(int pid, uint64_t address, uint8_t byte);
// Where a stub may run; -1: where the calling thread may.
int roost_stub_pin(int pid, int processor);
// Keeps the calling thread on the processor that it is on, which is returned, or -1; `before` gets where it might run, in
// ROOST_PROCESSOR_SET bytes, and gives it back.
#define ROOST_PROCESSOR_SET 128
int roost_pin_thread(void *before);
void roost_unpin_thread(const void *before);
// Stops a stub from any thread.
void roost_stub_kick(int pidfd);
#endif
