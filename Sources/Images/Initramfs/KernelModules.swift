// Finding the modules of an unpacked Debian kernel package and the order in which they load.
//
// A module tells what it needs in its ELF section `.modinfo` ("depends=a,b", NUL-terminated strings), so neither
// depmod nor modules.dep (which the package does not contain) is needed.
internal import Foundation

/// The loadable modules of one kernel version.
public struct KernelModules: Sendable {
    /// The kernel's release, as `uname -r` in the guest says it.
    public let release: String
    private var paths: [String: String] = [:]

    /// Looks through `root/lib/modules/RELEASE` (or under `usr/`); the first release there unless one is named.
    public init(root: String, release: String? = nil) throws(ImageError) {
        let manager = FileManager.default
        let candidates = [root + "/lib/modules", root + "/usr/lib/modules"]
        guard let base = candidates.first(where: { manager.fileExists(atPath: $0) }),
            let chosen = release ?? (try? manager.contentsOfDirectory(atPath: base))?.sorted().first
        else {
            throw ImageError(.damaged, "no kernel modules below \(root)/lib/modules")
        }
        self.release = chosen
        guard let walker = manager.enumerator(atPath: base + "/" + chosen) else {
            throw ImageError(.damaged, "no kernel modules in \(base)/\(chosen)")
        }
        for case let relative as String in walker {
            let file = relative.split(separator: "/").last.map(String.init) ?? relative
            guard let suffix = [".ko", ".ko.xz", ".ko.zst"].first(where: { file.hasSuffix($0) }) else { continue }
            paths[Self.normalized(String(file.dropLast(suffix.count)))] = "\(base)/\(chosen)/\(relative)"
        }
    }

    /// One module, ready to load.
    public struct Module: Sendable {
        /// The module's name, with underscores.
        public let name: String
        /// Its contents, not compressed.
        public let contents: [UInt8]
    }

    /// The named modules and all they depend on, each after what it needs; those built in or absent are left out.
    public func loadOrder(_ names: [String]) throws(ImageError) -> [Module] {
        var done: Set<String> = []
        var order: [Module] = []
        // Iterative depth-first walk: a cycle among modules ends it as any visited name does.
        for name in names { try visit(Self.normalized(name), &done, &order, depth: 0) }
        return order
    }

    private func visit(
        _ name: String, _ done: inout Set<String>, _ order: inout [Module], depth: Int
    ) throws(ImageError) {
        guard depth < 64, let path = paths[name], done.insert(name).inserted else { return }
        let contents = try Self.contents(of: path)
        for needed in Self.dependencies(contents) { try visit(needed, &done, &order, depth: depth + 1) }
        order.append(Module(name: name, contents: contents))
    }

    private static func contents(of path: String) throws(ImageError) -> [UInt8] {
        if path.hasSuffix(".xz") { return try Tool.output("xz", ["-dc", path]) }
        if path.hasSuffix(".zst") { return try Tool.output("zstd", ["-dcq", path]) }
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ImageError(.fileSystem, "cannot read \(path)")
        }
        return Array(data)
    }

    /// Names in the module's `depends=` string.
    static func dependencies(_ module: [UInt8]) -> [String] {
        let key = Array("\u{0}depends=".utf8)
        let data = Data(module)
        guard let found = data.range(of: Data(key)) else { return [] }
        let text = data[found.upperBound...].prefix(4096).prefix { $0 != 0 }
        return String(decoding: text, as: UTF8.self).split(separator: ",").map { normalized(String($0)) }
    }

    private static func normalized(_ name: String) -> String {
        String(name.map { $0 == "-" ? "_" : $0 })
    }
}
