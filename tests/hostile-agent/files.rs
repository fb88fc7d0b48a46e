// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attacks through the shared file system.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than the host can want to hold.
const FILES: u64 = 1 << 20;

/// Opens a file in `directory`, and again and again as long as that goes well, then says how often it did.
pub fn open_many(directory: &str) -> io::Result<()> {
    let most = Rlimit {
        current: Some(FILES),
        maximum: Some(FILES),
    };
    if setrlimit(Resource::Nofile, most).is_err() {
        // Not root, or not allowed to by the container: all that it has then.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let most = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, most)?;
    }
    let path = Path::new(directory).join("opened");
    fs::write(&path, "")?;
    let mut files = Vec::new();
    let error = loop {
        match File::open(&path) {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    say(&format!("opened {}: {error}", files.len()))
}

/// Makes `place` a directory and a link to `target` by turns, as fast as it can, for ever.
pub fn swap(place: &str, target: &str) -> io::Result<()> {
    let place = Path::new(place);
    let (directory, link) = (place.with_extension("d"), place.with_extension("l"));
    fs::create_dir(&directory)?;
    fs::create_dir(directory.join("in it"))?;
    symlink(target, &link)?;
    say("swapping")?;
    loop {
        fs::rename(&directory, place)?;
        fs::rename(place, &directory)?;
        fs::rename(&link, place)?;
        fs::rename(place, &link)?;
    }
}

/// Says a line on the guest's console, or, where there is none, on standard output.
fn say(line: &str) -> io::Result<()> {
    match File::options().write(true).open("/dev/hvc0") {
        Ok(mut console) => writeln!(console, "{line}"),
        Err(_) => writeln!(io::stdout(), "{line}"),
    }
}
