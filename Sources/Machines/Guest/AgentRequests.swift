// What a machine's own process asks of the agent in its guest, with little patience.
internal import AgentClient
internal import AgentProtocol
internal import Machine

/// An address of a network interface in a guest, as its agent tells.
public struct GuestAddress: Codable, Sendable, Equatable {
    /// The interface's name there.
    public var interface: String
    /// The address, of either version of IP.
    public var address: String

    /// Whether it holds on its link only (RFC 4291, 2.5.6).
    public var isLinkLocal: Bool { address.hasPrefix("fe80:") }

    /// Interfaces and addresses that are told of at most.
    static let most = 64

    /// Reads an interface and an address with a space between them; nil is what can't be one.
    init?(_ text: String) {
        let words = text.split(separator: " ", omittingEmptySubsequences: false)
        guard words.count == 2, 1...15 ~= words[0].utf8.count, 2...45 ~= words[1].utf8.count,
            words[0].utf8.allSatisfy({ 0x21...0x7E ~= $0 }),
            words[1].utf8.allSatisfy({ Array("0123456789abcdef.:".utf8).contains($0) })
        else { return nil }
        (interface, address) = (String(words[0]), String(words[1]))
    }
}

extension Machine {
    /// How long a guest has to answer in which nobody may be there who does, and how long an agent that is there has.
    static var agentPatience: Int32 { 1000 }
    static var answerPatience: Int32 { 5000 }

    /// Refuses what wants the guest while it is paused: nothing would reach it, and whoever sends would wait.
    func requireRunning() throws {
        if isPaused { throw MachinesError(.badRequest, "it is paused; `roost resume` lets it go on") }
    }

    /// The agent, if it answers now.
    func agent() throws -> AgentConnection {
        try requireRunning()
        return try AgentConnection(
            try connectAgent(milliseconds: Self.agentPatience), milliseconds: Self.agentPatience)
    }

    /// The addresses of the guest's network interfaces; none if no agent answers.
    var guestAddresses: [GuestAddress] {
        let texts = try? agent().perform(.addresses, milliseconds: Self.answerPatience)
        return (texts ?? []).prefix(GuestAddress.most).compactMap { GuestAddress($0) }
    }

    /// Has the guest shut down: its agent where one answers, else by the power button. Whether the agent does it.
    func shutDown() throws -> Bool {
        try requireRunning()
        if (try? agent().perform(.powerOff, milliseconds: Self.answerPatience)) != nil { return true }
        powerButton()
        return false
    }
}
