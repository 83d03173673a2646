// Where new images are put: what goes for one, and what doesn't.
import Foundation
import Glibc
import Images
import Testing

@Suite("the place of a new image")
struct ImagePlaceTests {
    private let scratch = "/tmp/roost-place-\(UUID().uuidString.prefix(8))"

    private func write(_ text: String, _ path: String) throws {
        let url = URL(fileURLWithPath: scratch + "/" + path)
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(text.utf8).write(to: url)
    }

    private func read(_ path: String) -> String? {
        FileManager.default.contents(atPath: scratch + "/" + path).map { String(decoding: $0, as: UTF8.self) }
    }

    /// The folder of a damaged image of another version: what it names isn't there.
    private func makeImage(_ name: String) throws {
        try write(#"{"version":9,"name":"\#(name)","kernel":"k","disk":"d","other":1}"#, name + "/image.json")
    }

    private func place(_ name: String, replacing: Bool) -> ImagePlace {
        ImagePlace(scratch + "/" + name, replacing: replacing)
    }

    private func take(_ name: String, replacing: Bool) throws {
        try place(name, replacing: replacing).take(scratch + "/new", aside: scratch + "/former-")
    }

    @Test("a folder that is neither an image nor empty is refused, before and after the work, and stays")
    func others() throws {
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        try write("mine", "work/thesis.txt")
        try write("{}", "json/image.json")
        try write("x", "file")
        try makeImage("new")
        for name in ["work", "json", "file"] {
            #expect(throws: ImageError.self, "\(name)") { try place(name, replacing: true).check() }
            #expect(throws: ImageError.self, "\(name)") { try take(name, replacing: true) }
        }
        #expect(read("work/thesis.txt") == "mine" && read("json/image.json") == "{}" && read("file") == "x")
        #expect(read("new/image.json") != nil && read("former-0") == nil)
    }

    @Test("an image, a damaged one too, and an empty folder are replaced, the former one aside; others can't read it")
    func replaced() throws {
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        try makeImage("image")
        try FileManager.default.createDirectory(atPath: scratch + "/empty", withIntermediateDirectories: true)
        for name in ["image", "empty", "free"] {
            try makeImage("new")
            try place(name, replacing: true).check()
            try take(name, replacing: true)
            #expect(read(name + "/image.json")?.contains("\"new\"") == true, "\(name)")
            var mode = stat()
            #expect(stat(scratch + "/" + name, &mode) == 0 && mode.st_mode & 0o777 == 0o700)
            if name == "image" { #expect(read("former-0/image.json")?.contains("\"image\"") == true) }
            try? FileManager.default.removeItem(atPath: scratch + "/former-0")
        }
    }

    @Test("an image that another build has put there meanwhile stays, unless it is to be replaced")
    func meanwhile() throws {
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        let late = place("image", replacing: false)
        try late.check()
        try makeImage("image")
        try makeImage("new")
        #expect(throws: ImageError.self) { try take("image", replacing: false) }
        #expect(read("image/image.json")?.contains("\"image\"") == true && read("new/image.json") != nil)
    }
}
