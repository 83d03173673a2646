// As much of XML as descriptors of machines need: elements, attributes, text. No declarations of entities: none can grow.
//
// Extensible Markup Language 1.0, fifth edition.

/// Goes through a document from front to back.
package struct XMLScanner {
    /// What is met on the way.
    package enum Event: Equatable {
        /// A start tag; names without their prefixes.
        case open(String, [String: String])
        /// Text between tags.
        case text(String)
        /// An end tag, or the end of an empty element.
        case close
    }

    private var rest: Substring
    private var closesNext = false
    /// Whether all was understood, to the end.
    package private(set) var isComplete = false

    /// Begins at the front.
    package init(_ text: String) { rest = text[...] }

    /// The next event; nil at the end, and where it isn't XML.
    package mutating func next() -> Event? {
        if closesNext {
            closesNext = false
            return .close
        }
        while !rest.isEmpty {
            if rest.first != "<" {
                let text = rest.prefix { $0 != "<" }
                rest = rest.dropFirst(text.count)
                return .text(Self.plain(text))
            }
            if rest.hasPrefix("<?") {
                guard skip(past: "?>") else { return nil }
            } else if rest.hasPrefix("<!--") {
                guard skip(past: "-->") else { return nil }
            } else if rest.hasPrefix("<!") {
                return nil
            } else if rest.hasPrefix("</") {
                return skip(past: ">") ? .close : nil
            } else {
                return tag()
            }
        }
        isComplete = true
        return nil
    }

    private mutating func skip(past end: String) -> Bool {
        guard let range = rest.firstRange(of: end) else { return false }
        rest = rest[range.upperBound...]
        return true
    }

    private mutating func tag() -> Event? {
        rest = rest.dropFirst()
        guard let name = name() else { return nil }
        var attributes: [String: String] = [:]
        while true {
            rest = rest.drop { $0.isWhitespace }
            if rest.hasPrefix("/>") {
                rest = rest.dropFirst(2)
                closesNext = true
                return .open(name, attributes)
            }
            if rest.first == ">" {
                rest = rest.dropFirst()
                return .open(name, attributes)
            }
            guard let key = self.name() else { return nil }
            rest = rest.drop { $0.isWhitespace }
            guard rest.first == "=" else { return nil }
            rest = rest.dropFirst().drop { $0.isWhitespace }
            guard let quote = rest.first, quote == "\"" || quote == "'" else { return nil }
            let value = rest.dropFirst().prefix { $0 != quote }
            rest = rest.dropFirst(value.count + 1)
            guard rest.first != nil else { return nil }
            rest = rest.dropFirst()
            attributes[key] = Self.plain(value)
        }
    }

    private mutating func name() -> String? {
        let name = rest.prefix { !$0.isWhitespace && !"=/>\"'<".contains($0) }
        rest = rest.dropFirst(name.count)
        return name.split(separator: ":").last.map(String.init)
    }

    private static let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")]

    private static func plain(_ text: Substring) -> String {
        guard text.contains("&") else { return String(text) }
        return entities.reduce(String(text)) { $0.replacing($1.0, with: $1.1) }
    }

    /// Text as it must be written.
    static func escaped(_ text: String) -> String {
        entities.reversed().reduce(text) { $0.replacing($1.1, with: $1.0) }
    }
}
