// What `--net` takes.
import ArgumentParser
import Machine

/// A network card, or none: KIND[,NAME=VALUE]….
struct NetworkOption: ExpressibleByArgument {
    /// Nil is none.
    var value: NetworkConfiguration?

    init?(argument: String) {
        if argument == "none" { return }
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        var words: [(name: String, value: String)] = []
        for part in parts.dropFirst() {
            if part == "server" {
                words.append((part, ""))
                continue
            }
            guard let equal = part.firstIndex(of: "="), equal != part.startIndex else { return nil }
            let value = String(part[part.index(after: equal)...])
            guard !value.isEmpty else { return nil }
            words.append((String(part[..<equal]), value))
        }
        guard let kind = Self.kind(parts.first ?? "", &words) else { return nil }
        var card = NetworkConfiguration(kind)
        guard Self.apply(words, to: &card) else { return nil }
        value = card
    }

    /// The kind, and takes its own words out.
    private static func kind(_ text: String, _ words: inout [(name: String, value: String)]) -> NetworkKind? {
        switch text {
        case "user", "passt":
            var forwards: [ForwardConfiguration] = []
            for word in words where word.name == "forward" {
                guard let forward = ForwardConfiguration(word.value) else { return nil }
                forwards.append(forward)
            }
            words.removeAll { $0.name == "forward" }
            return text == "user" ? .user(forwards: forwards) : .passt(forwards: forwards)
        case "tap":
            let own = ["ifname", "bridge", "queues"]
            let named = words.filter { own.contains($0.name) }
            guard Set(named.map(\.name)).count == named.count else { return nil }
            words.removeAll { own.contains($0.name) }
            func value(_ name: String) -> String? { named.first { $0.name == name }?.value }
            guard let queues = Int(value("queues") ?? "1"), 1...NetworkKind.mostQueues ~= queues else { return nil }
            return .tap(interface: value("ifname"), bridge: value("bridge"), queues: queues)
        case _ where text.hasPrefix("switch=") && text.count > 7: return .virtualSwitch(name: String(text.dropFirst(7)))
        case _ where text.hasPrefix("vhost-user=") && text.count > 11:
            let listens = words.filter { $0 == ("server", "") }.count
            guard listens <= 1 else { return nil }
            words.removeAll { $0 == ("server", "") }
            return .vhostUser(path: String(text.dropFirst(11)), listens: listens == 1)
        default: return nil
        }
    }

    /// What any kind takes, each word once.
    private static func apply(_ words: [(name: String, value: String)], to card: inout NetworkConfiguration) -> Bool {
        guard Set(words.map(\.name)).count == words.count else { return false }
        var burst: UInt64?
        for (name, value) in words {
            switch name {
            case "mac":
                guard let address = NetworkConfiguration.macAddress(value) else { return false }
                card.macAddress = address
            case "pcap": card.capture = value
            case "rate":
                guard let rate = BitRate(argument: value), rate.bits > 0 else { return false }
                card.limit = NetworkLimit(rate: rate.bits)
            case "burst":
                guard let size = MemorySize(argument: value), size.bytes > 0 else { return false }
                burst = size.bytes
            default: return false
            }
        }
        guard let burst else { return true }
        guard let limit = card.limit else { return false }
        card.limit = NetworkLimit(rate: limit.rate, burst: burst)
        return true
    }
}
