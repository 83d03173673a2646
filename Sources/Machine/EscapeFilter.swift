// The escape key of consoles: Ctrl-A.

/// What the user asks for with the escape key.
public enum ConsoleAction: Equatable, Sendable {
    /// End the machine at once.
    case end
    /// List the keys.
    case help
    /// Leave the console, the machine goes on.
    case detach
}

/// Finds Ctrl-A sequences in what the user types.
public struct EscapeFilter: Sendable {
    /// Letters after Ctrl-A, lower case, of a console that belongs to its machine's process.
    public static let ownKeys: [UInt8: ConsoleAction] = [
        UInt8(ascii: "x"): .end, UInt8(ascii: "h"): .help, UInt8(ascii: "?"): .help,
    ]
    /// Those of one that was attached.
    public static let attachedKeys: [UInt8: ConsoleAction] = [
        UInt8(ascii: "d"): .detach, UInt8(ascii: "h"): .help, UInt8(ascii: "?"): .help,
    ]

    private let keys: [UInt8: ConsoleAction]
    private var escaped = false

    /// A filter that has seen nothing.
    public init(keys: [UInt8: ConsoleAction] = ownKeys) { self.keys = keys }

    /// Splits input into what the guest gets and what Roost does.
    public mutating func filter(_ bytes: [UInt8]) -> (forGuest: [UInt8], actions: [ConsoleAction]) {
        var forGuest: [UInt8] = []
        var actions: [ConsoleAction] = []
        for byte in bytes {
            guard escaped else {
                if byte == 1 { escaped = true } else { forGuest.append(byte) }
                continue
            }
            escaped = false
            let letter = (0x41...0x5A).contains(byte) ? byte | 0x20 : byte
            if let action = keys[letter] {
                actions.append(action)
            } else {
                forGuest += byte == 1 ? [1] : [1, byte]
            }
        }
        return (forGuest, actions)
    }
}
