// Values that options take.
public import ArgumentParser
internal import HostOS
internal import Machine

extension EngineKind: ExpressibleByArgument {}
extension ClockKind: ExpressibleByArgument {}
extension UserMode: ExpressibleByArgument {
    /// `always` is for tests.
    static var allValueStrings: [String] { ["auto", "translate"] }
}

/// A size such as 512M.
struct MemorySize: ExpressibleByArgument, Equatable {
    var bytes: UInt64

    init(bytes: UInt64) { self.bytes = bytes }

    init?(argument: String) {
        var digits = argument[...]
        for suffix in ["iB", "ib", "B", "b"] where digits.hasSuffix(suffix) {
            digits = digits.dropLast(suffix.count)
            break
        }
        var shift: UInt64 = 0
        if let last = digits.last, let place = "KMGT".firstIndex(of: Character(last.uppercased())) {
            shift = 10 * UInt64("KMGT".distance(from: "KMGT".startIndex, to: place) + 1)
            digits = digits.dropLast()
        }
        guard let number = UInt64(digits), number <= UInt64.max >> shift else { return nil }
        bytes = number << shift
    }

    var defaultValueDescription: String { "\(bytes >> 20)M" }
}

/// Bits a second, such as 10M, with k, M or G for powers of a thousand.
struct BitRate: ExpressibleByArgument {
    var bits: UInt64

    init?(argument: String) {
        var digits = argument[...]
        var factor: UInt64 = 1
        if let last = digits.last, let place = ["K", "M", "G"].firstIndex(of: last.uppercased()) {
            for _ in 0...place { factor *= 1000 }
            digits = digits.dropLast()
        }
        guard let number = UInt64(digits) else { return nil }
        let (bits, overflow) = number.multipliedReportingOverflow(by: factor)
        if overflow { return nil }
        self.bits = bits
    }
}

/// stdio, file:PATH or pty.
struct ConsoleOption: ExpressibleByArgument {
    var value: ConsoleChoice

    init(value: ConsoleChoice) { self.value = value }

    init?(argument: String) {
        switch argument {
        case "stdio": value = .standard
        case "pty": value = .pseudoTerminal
        default:
            guard argument.hasPrefix("file:"), argument.count > 5 else { return nil }
            value = .file(PrivateFolder.absolute(String(argument.dropFirst(5))))
        }
    }

    var defaultValueDescription: String { "stdio" }
}

/// A port, decimal or 0x hexadecimal.
struct PortNumber: ExpressibleByArgument {
    var value: UInt16

    init?(argument: String) {
        let number = argument.hasPrefix("0x") ? UInt16(argument.dropFirst(2), radix: 16) : UInt16(argument)
        guard let number else { return nil }
        value = number
    }
}

/// Comma-separated kinds of events.
struct TraceOption: ExpressibleByArgument {
    var value: TraceOptions

    init(value: TraceOptions) { self.value = value }

    init?(argument: String) {
        value = []
        for name in argument.split(separator: ",") {
            guard let option = TraceOptions.names.first(where: { $0.name == name }) else { return nil }
            value.formUnion(option.option)
        }
    }

    var defaultValueDescription: String { "nothing" }
}
