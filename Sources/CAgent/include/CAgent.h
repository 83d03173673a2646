// What the agent needs of Linux and Swift cannot say: fork, terminals, virtio sockets.
#ifndef CAGENT_H
#define CAGENT_H
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct {
    int32_t process; // also the number of its session and process group
    int input;       // to its standard input; with a terminal -1
    int output;      // from its standard output; with a terminal both ways
    int errors;      // from its standard error; with a terminal -1
} roost_program;

typedef struct {
    int isWanted;
    uint16_t columns, rows;
} roost_terminal_size;

// Starts a program in a session of its own; 0 or an errno. Where `folder` is optional and isn't there, / is taken.
int roost_start_program(
    char *const *arguments, char *const *environment, const char *folder, int folder_is_optional, uint32_t user,
    uint32_t group, const uint32_t *groups, size_t group_count, const roost_terminal_size *terminal,
    roost_program *program);

void roost_set_terminal_size(int terminal, uint16_t columns, uint16_t rows);

// Listens on a port of the guest's virtio sockets for the host; -1 and errno.
int roost_vsock_listen(uint32_t port);
// The next stream, non-blocking, if it is the host's; else -1.
int roost_accept(int listener);
// A descriptor that can be read when a child has ended, and reading it empty.
int roost_child_signals(void);
void roost_drain_signals(int descriptor);
// Each returns 0 or an errno.
int roost_set_clock(uint64_t nanoseconds);
int roost_add_entropy(const void *bytes, size_t count);
// Six bytes for an interface; one that is up and doesn't take them goes down for a moment.
int roost_set_link_address(const char *interface, const uint8_t *address);
int roost_address_text(const struct sockaddr *address, char *text, size_t size);

#endif
