// What `--net` takes.
internal import ArgumentParser
internal import Machine

/// A network card, or none: KIND[,NAME=VALUE]….
struct NetworkOption {
    /// Nil is none.
    var value: NetworkConfiguration?

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        if argument == "none" { return }
        var words = OptionWords(argument)
        var card = NetworkConfiguration(try Self.kind(&words))
        let address = "an address such as 52:54:00:12:34:56, not one of a group"
        card.macAddress = try words.value("mac", address, NetworkConfiguration.macAddress) ?? card.macAddress
        card.capture = try words.value("pcap")
        let rate = try words.value("rate", "bits a second, such as 10M") { text in
            BitRate(argument: text).flatMap { $0.bits > 0 ? $0.bits : nil }
        }
        let burst = try words.size("burst")
        try words.finish()
        if let rate {
            card.limit = burst.map { NetworkLimit(rate: rate, burst: $0) } ?? NetworkLimit(rate: rate)
        } else if burst != nil {
            throw ValidationError("burst belongs to a rate")
        }
        value = card
    }

    /// The kind, with its own words.
    private static func kind(_ words: inout OptionWords) throws -> NetworkKind {
        let name = words.first
        switch name {
        case "user", "passt":
            let forwards = try words.all("forward").map { text in
                guard let forward = ForwardConfiguration(text) else {
                    throw ValidationError("forward=\(text): tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT")
                }
                return forward
            }
            return name == "user" ? .user(forwards: forwards) : .passt(forwards: forwards)
        case "tap":
            let queues = try words.number("queues", 1...UInt64(NetworkKind.mostQueues)) ?? 1
            return .tap(
                interface: try words.value("ifname"), bridge: try words.value("bridge"), queues: Int(queues))
        case _ where name.hasPrefix("switch=") && name.count > 7: return .virtualSwitch(name: String(name.dropFirst(7)))
        case _ where name.hasPrefix("vhost-user=") && name.count > 11:
            return .vhostUser(path: String(name.dropFirst(11)), listens: try words.flag("server"))
        default:
            throw ValidationError(
                "there are user, passt, tap, switch=NAME, vhost-user=SOCKET and none; a bridge is tap,bridge=NAME")
        }
    }
}
