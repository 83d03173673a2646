// The folder that a new image is to have. What is there goes only if it is an image, or an empty folder.
internal import Foundation
internal import HostOS

/// Where an image is put when it is built.
package struct ImagePlace: Sendable {
    /// Times that another image is found there, put meanwhile by other builds, before this one gives up.
    private static let mostFormer = 8

    private let folder: String
    private let isReplacing: Bool

    /// Names a folder, from the root of the file system; `replacing` an image that is there.
    package init(_ folder: String, replacing: Bool) {
        self.folder = folder
        isReplacing = replacing
    }

    /// Refuses a folder that can't become the image's.
    package func check() throws(ImageError) {
        guard FileManager.default.fileExists(atPath: folder) else { return }
        guard isReplacing else { throw isThere }
        if (try? FileManager.default.contentsOfDirectory(atPath: folder))?.isEmpty == true { return }
        guard ImageManifest.isThere(in: folder) else {
            throw ImageError(
                .badRequest,
                "\(folder) is there, and is no guest image: only images are replaced; remove it, or name another folder"
            )
        }
    }

    /// Puts a finished folder there, for this user only: its disk holds what the guest writes. What is there becomes
    /// `aside` and a number.
    package func take(_ source: String, aside: String) throws(ImageError) {
        do {
            try FileManager.default.setAttributes([.posixPermissions: 0o700], ofItemAtPath: source)
        } catch {
            throw ImageError(.fileSystem, "cannot change the mode of \(source): \(error.localizedDescription)")
        }
        for number in 0..<Self.mostFormer {
            try check()
            let former = "\(aside)\(number)"
            let isMoved = isReplacing && FileManager.default.fileExists(atPath: folder)
            do throws(HostError) {
                if isMoved { try HostFile.rename(folder, to: former) }
                return try HostFile.rename(source, to: folder)
            } catch {
                // Another build has put one there, or taken this one away, in this moment.
                if isReplacing, [HostErrorNumber.exists, HostErrorNumber.notFound].contains(error.errno) { continue }
                if isMoved { try? HostFile.rename(former, to: folder) }
                throw error.errno == HostErrorNumber.exists
                    ? isThere : ImageError(.fileSystem, "cannot put the image at \(folder): \(error)")
            }
        }
        throw isThere
    }

    private var isThere: ImageError {
        ImageError(.badRequest, "\(folder) is there already; --replace builds it anew, and loses what its disk holds")
    }
}
