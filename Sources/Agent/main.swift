// The agent: a small program in guests through which Roost runs programs there, and tells the guest what has changed
// around it. It listens on a port of the guest's sockets that only the host can reach.
internal import AgentProtocol
internal import CAgent
internal import Glibc

signal(SIGPIPE, SIG_IGN)
let listener = roost_vsock_listen(agentPort)
if listener < 0 {
    perror("roost-agent: no virtio sockets")
    exit(1)
}
GuestMounts.start()
AgentLoop(listener: listener).run()
