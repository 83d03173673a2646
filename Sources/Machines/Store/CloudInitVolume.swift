// What cloud-init reads at a guest's first boot: a small volume labeled "cidata" (its NoCloud data source).
internal import Foundation
internal import HostOS
internal import Storage

/// Makes volumes for cloud-init.
public enum CloudInitVolume {
    /// Bytes of user data that a volume takes.
    static let largest = 16 << 20

    /// A volume with this user data, for a machine of this number and name.
    static func bytes(userData path: String, id: UUID, name: String) throws -> [UInt8] {
        let userData: [UInt8]
        do { userData = try HostFile.contents(of: path, limit: largest) } catch {
            throw MachinesError(.badRequest, "--cloud-init: \(error)")
        }
        let metaData = "instance-id: \(id.uuidString.lowercased())\nlocal-hostname: \(name)\n"
        return try ISOImage.volume(
            label: "cidata", files: [("meta-data", Array(metaData.utf8)), ("user-data", userData)])
    }

    /// A volume for a machine that nobody keeps, in a file that the caller removes once it is open.
    public static func temporary(userData path: String) throws -> String {
        let id = UUID()
        let volume = try bytes(userData: path, id: id, name: "roost")
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(id).iso").path
        try explaining { () throws(HostError) in try DurableFile.write(volume, to: file) }
        return file
    }
}
