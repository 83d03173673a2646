// What the host tells the guest about itself, and asks of it.
internal import AgentProtocol
internal import CAgent
internal import Glibc

enum GuestSystem {
    /// Does one thing; the answer.
    static func perform(_ message: AgentMessage) -> AgentMessage {
        do throws(AgentError) {
            switch message {
            case .setClock(let time): try check(roost_set_clock(time), "set the clock")
            case .addEntropy(let bytes):
                try check(bytes.withUnsafeBytes { roost_add_entropy($0.baseAddress, $0.count) }, "add entropy")
            case .setIdentity(let machine, let host): try setIdentity(machine, host)
            case .setLinkAddress(let interface, let address):
                guard address.count == 6 else {
                    throw AgentError(errno: EINVAL, text: "a hardware address has 6 bytes")
                }
                try check(roost_set_link_address(interface, address), "set the address of \(interface)")
            case .addresses: return .done(addresses())
            case .powerOff: try startShutdown("poweroff")
            case .reboot: try startShutdown("reboot")
            case .synchronizeMounts(let isForced): try GuestMounts.synchronize(isForced: isForced)
            default: throw AgentError(errno: ENOSYS, text: "this agent can't do that")
            }
            return .done([])
        } catch {
            return .failed(error.errno, error.text)
        }
    }

    private static func check(_ failure: Int32, _ what: String) throws(AgentError) {
        if failure != 0 { throw AgentError(errno: failure, text: "\(what): \(String(cString: strerror(failure)))") }
    }

    private static func setIdentity(_ machine: String, _ host: String) throws(AgentError) {
        if !machine.isEmpty {
            guard machine.utf8.count == 32, machine.allSatisfy(\.isHexDigit) else {
                throw AgentError(errno: EINVAL, text: "a machine identifier has 32 hexadecimal digits")
            }
            try write(machine + "\n", to: "/etc/machine-id")
        }
        if !host.isEmpty {
            try check(sethostname(host, host.utf8.count) == 0 ? 0 : errno, "set the host name")
            try write(host + "\n", to: "/etc/hostname")
        }
    }

    private static func write(_ text: String, to path: String) throws(AgentError) {
        let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard file >= 0 else { throw AgentError(errno: errno, text: "\(path): \(String(cString: strerror(errno)))") }
        defer { close(file) }
        let bytes = Array(text.utf8)
        try check(Glibc.write(file, bytes, bytes.count) == bytes.count ? 0 : errno, path)
    }

    /// Interface and address, a text for each.
    private static func addresses() -> [String] {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return [] }
        defer { freeifaddrs(list) }
        var found: [String] = []
        var entry = list
        while let current = entry {
            entry = current.pointee.ifa_next
            guard let address = current.pointee.ifa_addr, current.pointee.ifa_flags & UInt32(IFF_LOOPBACK) == 0
            else { continue }
            withUnsafeTemporaryAllocation(of: CChar.self, capacity: 64) { text in
                guard roost_address_text(address, text.baseAddress, text.count) == 0 else { return }
                found.append(String(cString: current.pointee.ifa_name) + " " + String(cString: text.baseAddress!))
            }
        }
        return found
    }

    /// Has the guest's init shut down; it ends this program too.
    private static func startShutdown(_ command: String) throws(AgentError) {
        var request = ProgramRequest(command: [command])
        request.folder = "/"
        let program = try GuestProgram.start(request)
        for descriptor in [program.input, program.output, program.errors] { close(descriptor) }
    }
}
