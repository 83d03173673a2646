// Values of options that are made of several words, and what is said about those that make no sense.
internal import ArgumentParser

/// FIRST[,NAME[=VALUE]]…: each word is taken by its name, once; `finish` refuses what nobody took.
struct OptionWords {
    /// What stands before the first comma.
    let first: String
    private var words: [(name: String, value: String?)]
    private var known: [String] = []

    /// Takes a value apart at its commas.
    init(_ argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        first = parts[0]
        words = parts.dropFirst().map(Self.word)
    }

    /// Takes a value apart from its end, as far as words have names of these, so that what comes first may have commas.
    init(_ argument: String, onlyNamed names: Set<String>) {
        var first = argument[...]
        words = []
        while let comma = first.lastIndex(of: ",") {
            let word = Self.word(String(first[first.index(after: comma)...]))
            guard names.contains(word.name) else { break }
            words.insert(word, at: 0)
            first = first[..<comma]
        }
        self.first = String(first)
    }

    private static func word(_ text: String) -> (name: String, value: String?) {
        guard let equal = text.firstIndex(of: "=") else { return (text, nil) }
        return (String(text[..<equal]), String(text[text.index(after: equal)...]))
    }

    /// The values of a name that may be given several times.
    mutating func all(_ name: String) throws -> [String] {
        known.append(name + "=")
        let found = words.filter { $0.name == name }
        words.removeAll { $0.name == name }
        return try found.map { word in
            guard let value = word.value, !value.isEmpty else { throw ValidationError("\(name) wants a value") }
            return value
        }
    }

    /// The value of a name.
    mutating func value(_ name: String) throws -> String? {
        let values = try all(name)
        if values.count > 1 { throw ValidationError("\(name) is there twice") }
        return values.first
    }

    /// Whether a word that has no value is there.
    mutating func flag(_ name: String) throws -> Bool {
        known.append(name)
        let found = words.filter { $0.name == name }
        if found.count > 1 { throw ValidationError("\(name) is there twice") }
        if found.contains(where: { $0.value != nil }) { throw ValidationError("\(name) takes no value") }
        words.removeAll { $0.name == name }
        return !found.isEmpty
    }

    /// A value that a function makes something of, or else is told to be of another kind.
    mutating func value<Value>(_ name: String, _ wanted: String, _ make: (String) -> Value?) throws -> Value? {
        guard let text = try value(name) else { return nil }
        guard let value = make(text) else { throw ValidationError("\(name)=\(text): \(wanted)") }
        return value
    }

    /// A number of a range.
    mutating func number(_ name: String, _ range: ClosedRange<UInt64>) throws -> UInt64? {
        let wanted =
            range.upperBound == .max ? "from \(range.lowerBound) on" : "from \(range.lowerBound) to \(range.upperBound)"
        return try value(name, "a number \(wanted)") { UInt64($0).flatMap { range.contains($0) ? $0 : nil } }
    }

    /// A size that isn't zero, in bytes.
    mutating func size(_ name: String) throws -> UInt64? {
        try value(name, "a size such as 512M") { MemorySize(argument: $0).flatMap { $0.bytes > 0 ? $0.bytes : nil } }
    }

    /// One of several names.
    mutating func choice<Choice: RawRepresentable & CaseIterable>(_ name: String, _: Choice.Type) throws -> Choice?
    where Choice.RawValue == String {
        try value(name, "there are \(Self.list(Choice.allCases.map(\.rawValue)))") { Choice(rawValue: $0) }
    }

    /// Refuses what was not taken.
    func finish() throws {
        guard let word = words.first else { return }
        throw ValidationError("there is no '\(word.name)' here; there are \(Self.list(known))")
    }

    /// Words as a sentence has them.
    static func list(_ words: [String]) -> String {
        words.count < 2 ? words.joined() : words.dropLast().joined(separator: ", ") + " and " + words[words.count - 1]
    }
}
