// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds a container's command and executes it, and says precisely why it cannot.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io;

use super::failed;
use super::in_root::file_type;

/// Where commands are looked for if the environment has no `PATH`, as in other container engines.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that was found, ready to be executed.
#[derive(Debug)]
pub struct Command {
    file: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// Why a file is no command.
enum Refusal {
    /// There is none.
    Missing,
    /// There is one, but it cannot be executed.
    NotExecutable(String),
}

impl Command {
    /// Finds the command that `arguments` names first, by the `PATH` of `environment`, as the user of this process.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CommandNotFound`] or [`ErrorKind::CommandNotExecutable`].
    pub fn find(arguments: &[String], environment: &[String]) -> Result<Self, AgentError> {
        let name = arguments.first().map_or("", String::as_str);
        let path = environment
            .iter()
            .find_map(|variable| variable.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        let file = find(name, path)?;
        Ok(Self {
            file: c_string(file.as_os_str().as_bytes())?,
            arguments: c_strings(arguments)?,
            environment: c_strings(environment)?,
        })
    }

    /// Becomes the command; returns if that fails.
    #[must_use]
    pub fn execute(&self) -> AgentError {
        let pointers = |strings: &[CString]| -> Vec<_> {
            let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
            pointers.push(std::ptr::null());
            pointers
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        // Nothing but the standard streams is the command's, whatever a library may have opened.
        // SAFETY: marks descriptors to be closed on execution, and closes none before.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3_u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
        // SAFETY: the file is a C string, and both arrays hold pointers to C strings that outlive the call, ended by a
        // null pointer.
        unsafe { libc::execve(self.file.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        let error = std::io::Error::last_os_error();
        execution_failure(&self.file.to_string_lossy(), &error)
    }
}

fn execution_failure(file: &str, error: &std::io::Error) -> AgentError {
    use ErrorKind::{CommandNotExecutable, CommandNotFound};
    let (kind, reason) = match error.raw_os_error() {
        // The file itself was found before.
        Some(libc::ENOENT) => (
            CommandNotFound,
            "the interpreter that it names does not exist".to_owned(),
        ),
        Some(libc::ENOEXEC) => (
            CommandNotExecutable,
            "it has no format that the kernel can execute".to_owned(),
        ),
        _ => (CommandNotExecutable, error.to_string()),
    };
    AgentError::new(kind, format!("cannot execute `{file}`: {reason}"))
}

/// The file of the command `name`: itself if it has a slash, else the first in the directories of `path`.
fn find(name: &str, path: &str) -> Result<PathBuf, AgentError> {
    let not_executable = |file: &Path, reason: String| {
        AgentError::new(
            ErrorKind::CommandNotExecutable,
            format!("cannot execute `{}`: {reason}", file.display()),
        )
    };
    if name.contains('/') {
        let file = PathBuf::from(name);
        return match check(&file) {
            Ok(()) => Ok(file),
            Err(Refusal::NotExecutable(reason)) => Err(not_executable(&file, reason)),
            Err(Refusal::Missing) => Err(AgentError::new(
                ErrorKind::CommandNotFound,
                format!("command `{name}` does not exist"),
            )),
        };
    }
    let mut refused = None;
    for directory in path.split(':') {
        // An empty entry is the working directory, by tradition.
        let directory = if directory.is_empty() { "." } else { directory };
        let file = Path::new(directory).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(Refusal::Missing) => {}
            Err(Refusal::NotExecutable(reason)) => {
                refused.get_or_insert_with(|| not_executable(&file, reason));
            }
        }
    }
    Err(refused.unwrap_or_else(|| {
        AgentError::new(
            ErrorKind::CommandNotFound,
            format!("command `{name}` was not found in PATH ({path})"),
        )
    }))
}

/// Whether this process may execute `file`.
fn check(file: &Path) -> Result<(), Refusal> {
    let refuse = |error: io::Errno| Refusal::NotExecutable(error.to_string());
    // `/proc/self/exe` is, up to the execution, the agent's own program and no file of the container.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let opened = match rustix::fs::openat2(CWD, file, flags, Mode::empty(), resolve) {
        Ok(opened) => opened,
        Err(io::Errno::NOENT | io::Errno::NOTDIR) => return Err(Refusal::Missing),
        Err(io::Errno::LOOP) => {
            let reason = "it is behind a link of procfs, or links that go in a circle";
            return Err(Refusal::NotExecutable(reason.to_owned()));
        }
        Err(error) => return Err(refuse(error)),
    };
    match file_type(&opened).map_err(refuse)? {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Refusal::NotExecutable("it is a directory".to_owned())),
        _ => {
            return Err(Refusal::NotExecutable(
                "it is not a regular file".to_owned(),
            ));
        }
    }
    rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).map_err(refuse)
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, AgentError> {
    strings
        .iter()
        .map(|string| c_string(string.as_bytes()))
        .collect()
}

fn c_string(bytes: &[u8]) -> Result<CString, AgentError> {
    CString::new(bytes).map_err(|error| failed("cannot pass on an argument", error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    /// Directories `a` and `b` with an executable `run` in `b`, a plain file `data` in both, and a directory `dir`.
    fn directories() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        for (file, mode) in [
            ("a/data", 0o644),
            ("b/data", 0o644),
            ("b/run", 0o755),
            ("b/late", 0o755),
            ("a/late", 0o644),
        ] {
            let file = base.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(base.path().join("a/dir")).unwrap();
        base
    }

    fn find_in(base: &tempfile::TempDir, name: &str, path: &str) -> Result<PathBuf, AgentError> {
        let base = base.path().to_str().unwrap();
        find(&name.replace('@', base), &path.replace('@', base))
    }

    #[rstest]
    #[case::by_path("run", "@/a:@/b", "b/run")]
    #[case::missing_directory_in_path("run", "@/none:@/b", "b/run")]
    #[case::not_executable_goes_on("late", "@/a:@/b", "b/late")]
    #[case::by_itself("@/b/run", "", "b/run")]
    fn command_is_found(#[case] name: &str, #[case] path: &str, #[case] expected: &str) {
        let base = directories();

        assert_eq!(
            find_in(&base, name, path).unwrap(),
            base.path().join(expected)
        );
    }

    #[rstest]
    #[case::nowhere(
        "walk",
        "@/a:@/b",
        ErrorKind::CommandNotFound,
        "command `walk` was not found in PATH ("
    )]
    #[case::no_file("@/b/walk", "", ErrorKind::CommandNotFound, "command `")]
    #[case::file_as_directory("@/b/run/x", "", ErrorKind::CommandNotFound, "command `")]
    #[case::plain_file("@/a/data", "", ErrorKind::CommandNotExecutable, "cannot execute `")]
    #[case::only_plain_files(
        "data",
        "@/a:@/b",
        ErrorKind::CommandNotExecutable,
        "cannot execute `"
    )]
    #[case::directory("@/a/dir", "", ErrorKind::CommandNotExecutable, "cannot execute `")]
    #[case::device(
        "/dev/null",
        "",
        ErrorKind::CommandNotExecutable,
        "cannot execute `/dev/null`: it is not a regular file"
    )]
    fn what_is_no_command_is_told_why(
        #[case] name: &str,
        #[case] path: &str,
        #[case] kind: ErrorKind,
        #[case] message: &str,
    ) {
        let error = find_in(&directories(), name, path).unwrap_err();

        assert_eq!(error.kind, kind);
        assert!(error.message.starts_with(message), "{error}");
    }

    #[test]
    fn path_of_the_environment_is_used() {
        let base = directories();
        let environment = format!("PATH={}/b", base.path().display());

        let command = Command::find(&["run".to_owned()], &[environment]).unwrap();

        assert!(command.file.to_str().unwrap().ends_with("/b/run"));
    }

    #[rstest]
    #[case(
        libc::ENOENT,
        ErrorKind::CommandNotFound,
        "cannot execute `/x`: the interpreter that it names does not exist"
    )]
    #[case(
        libc::ENOEXEC,
        ErrorKind::CommandNotExecutable,
        "cannot execute `/x`: it has no format that the kernel can execute"
    )]
    #[case(
        libc::EACCES,
        ErrorKind::CommandNotExecutable,
        "cannot execute `/x`: Permission denied (os error 13)"
    )]
    fn failed_execution_is_told_why(
        #[case] errno: i32,
        #[case] kind: ErrorKind,
        #[case] message: &str,
    ) {
        let error = execution_failure("/x", &std::io::Error::from_raw_os_error(errno));

        assert_eq!((error.kind, error.message.as_str()), (kind, message));
    }
}
