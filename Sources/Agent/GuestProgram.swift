// Starting programs.
internal import AgentProtocol
internal import CAgent
internal import Glibc

/// Why something can't be done.
struct AgentError: Error {
    var errno: Int32
    var text: String
}

/// A user of the guest's, as /etc/passwd says.
struct GuestUser {
    var name = "root"
    var user: UInt32 = 0
    var group: UInt32 = 0
    var home = "/root"
    var shell = "/bin/sh"

    /// Looks a user up.
    static func named(_ name: String) throws(AgentError) -> GuestUser {
        for line in GuestFile.contents(of: "/etc/passwd").split(separator: "\n") {
            let parts = line.split(separator: ":", omittingEmptySubsequences: false)
            guard parts.count >= 7, parts[0] == name, let user = UInt32(parts[2]), let group = UInt32(parts[3]) else {
                continue
            }
            return GuestUser(name: name, user: user, group: group, home: String(parts[5]), shell: String(parts[6]))
        }
        if name == "root" { return GuestUser() }
        throw AgentError(errno: ENOENT, text: "the guest has no user \(name)")
    }

    /// The groups that a user is in beside its own, as /etc/group says.
    var groups: [UInt32] {
        GuestFile.contents(of: "/etc/group").split(separator: "\n").compactMap { line in
            let parts = line.split(separator: ":", omittingEmptySubsequences: false)
            guard parts.count >= 4, parts[3].split(separator: ",").contains(Substring(name)) else { return nil }
            return UInt32(parts[2])
        }
    }
}

/// Files of the guest's.
enum GuestFile {
    /// What a file holds, a megabyte at most; nothing if it can't be read.
    static func contents(of path: String) -> String {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return "" }
        defer { close(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while bytes.count < 1 << 20 {
            let count = read(file, &buffer, buffer.count)
            if count <= 0 { break }
            bytes += buffer.prefix(count)
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

enum GuestProgram {
    private static let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    /// Starts a program in a session of its own.
    static func start(_ request: ProgramRequest) throws(AgentError) -> roost_program {
        let user = try GuestUser.named(request.user.isEmpty ? "root" : request.user)
        var environment = [
            "PATH=" + path, "HOME=" + user.home, "USER=" + user.name, "LOGNAME=" + user.name, "SHELL=" + user.shell,
            "LANG=C.UTF-8",
        ]
        for variable in request.environment {
            let name = variable.prefix { $0 != "=" } + "="
            environment.removeAll { $0.hasPrefix(name) }
            environment.append(variable)
        }
        let folder = request.folder.isEmpty ? user.home : request.folder
        let groups = [user.group] + user.groups
        var program = roost_program(process: 0, input: -1, output: -1, errors: -1)
        var size = roost_terminal_size(
            isWanted: request.terminal == nil ? 0 : 1, columns: request.terminal?.columns ?? 0,
            rows: request.terminal?.rows ?? 0)
        let failure = withStrings(request.command) { arguments in
            withStrings(environment) { variables in
                groups.withUnsafeBufferPointer { groups in
                    roost_start_program(
                        arguments, variables, folder, request.folder.isEmpty ? 1 : 0, user.user, user.group,
                        groups.baseAddress, groups.count, &size, &program)
                }
            }
        }
        if failure != 0 {
            let reason = String(cString: strerror(failure))
            throw AgentError(errno: failure, text: "\(request.command[0]): \(reason)")
        }
        return program
    }

    /// Calls `body` with a list of C strings, ended by nil.
    private static func withStrings<Result>(
        _ texts: [String], _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Result
    ) -> Result {
        var pointers: [UnsafeMutablePointer<CChar>?] = texts.map { strdup($0) }
        pointers.append(nil)
        defer { for pointer in pointers { free(pointer) } }
        return pointers.withUnsafeMutableBufferPointer { body($0.baseAddress!) }
    }
}
