// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What cpio makes of our archives.

use std::fs;
use std::process::{Command, ExitCode};

use coracle_guest::cpio::Archive;
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let ignored = Command::new("cpio").arg("--version").output().is_err();
    if ignored {
        eprintln!("archive: ignored, since there is no cpio");
    }
    let trials = vec![
        Trial::test("cpio_lists_what_was_put_in", || {
            cpio_lists_what_was_put_in();
            Ok(())
        })
        .with_ignored_flag(ignored),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn cpio_lists_what_was_put_in() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("archive.cpio");
    let mut archive = Archive::new(fs::File::create(&file).unwrap());
    archive.directory("dev", 0o755).unwrap();
    archive
        .character_device("dev/console", 0o600, 5, 1)
        .unwrap();
    archive.file("init", 0o755, b"12345").unwrap();
    archive.symlink("sbin", "usr/sbin").unwrap();
    archive.finish().unwrap();

    let output = Command::new("cpio")
        .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet", "-F"])
        .arg(&file)
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .output()
        .unwrap();

    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "drwxr-xr-x   2 0        0               0 Jan  1  1970 dev\n\
         crw-------   1 0        0          5,   1 Jan  1  1970 dev/console\n\
         -rwxr-xr-x   1 0        0               5 Jan  1  1970 init\n\
         lrwxrwxrwx   1 0        0               8 Jan  1  1970 sbin -> usr/sbin\n"
    );
}
