// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes into a lab with a command, and what comes out of it.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::protocol::PAYLOAD_DIRECTORY;

/// The payload disk's size. It is a hole but for the archive; the lab learns the size when the
/// snapshot is made, so it is the same for every payload.
const DISK_SIZE: u64 = 64 << 30;

/// A file or folder for the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where it is here.
    pub source: PathBuf,
    /// Where it goes, an absolute path.
    pub destination: PathBuf,
}

impl Payload {
    /// A payload that goes into the payload folder under its own name.
    ///
    /// # Errors
    ///
    /// If the path has no last part.
    pub fn named_as_itself(source: PathBuf) -> Result<Self> {
        let Some(name) = source.file_name() else {
            bail!(
                "the payload {} has no name; give it one: SOURCE:DESTINATION",
                source.display()
            );
        };
        let destination = Path::new(PAYLOAD_DIRECTORY).join(name);
        Ok(Self {
            source,
            destination,
        })
    }
}

impl FromStr for Payload {
    type Err = anyhow::Error;

    /// `SOURCE[:DESTINATION]`.
    fn from_str(text: &str) -> Result<Self> {
        match text.rsplit_once(':') {
            Some((source, destination)) if destination.starts_with('/') => Ok(Self {
                source: source.into(),
                destination: destination.into(),
            }),
            Some((_, destination)) => {
                bail!("the payload's destination {destination:?} is not an absolute path")
            }
            None => Self::named_as_itself(text.into()),
        }
    }
}

/// The payload disk: an unnamed file, gone with the last process that holds it.
#[derive(Debug)]
pub struct Disk {
    /// The file.
    pub file: File,
    /// The archive's length in bytes; 0 if there is none.
    pub length: u64,
}

impl Disk {
    /// Makes a disk with an archive of these payloads.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or the disk not be written.
    pub fn new(cache: &Cache, payloads: &[Payload]) -> Result<Self> {
        let file = tempfile::tempfile_in(cache.root())
            .with_context(|| format!("cannot create a file in {}", cache.root().display()))?;
        let mut length = 0;
        if !payloads.is_empty() {
            length = write_archive(&file, payloads)?;
        }
        file.set_len(DISK_SIZE)
            .context("cannot size the payload disk")?;
        Ok(Self { file, length })
    }
}

fn write_archive(file: &File, payloads: &[Payload]) -> Result<u64> {
    let mut builder = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    builder.follow_symlinks(false);
    // Looking for holes fails on a file that was just written.
    builder.sparse(false);
    for payload in payloads {
        let source = payload
            .source
            .canonicalize()
            .with_context(|| format!("cannot find the payload {}", payload.source.display()))?;
        let destination = payload
            .destination
            .strip_prefix("/")
            .unwrap_or(&payload.destination);
        let appended = if source.is_dir() {
            builder.append_dir_all(destination, &source)
        } else {
            builder.append_path_with_name(&source, destination)
        };
        appended.with_context(|| format!("cannot pack the payload {}", source.display()))?;
    }
    let mut writer = builder
        .into_inner()
        .context("cannot write the payload disk")?;
    writer.flush().context("cannot write the payload disk")?;
    let mut file = file;
    file.stream_position()
        .context("cannot tell the payload's length")
}

/// Unpacks a tar archive of results into a folder, which is created.
///
/// # Errors
///
/// If the archive is broken or the folder cannot be written.
pub fn unpack_results(archive: File, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut archive = tar::Archive::new(archive);
    archive.set_overwrite(true);
    archive
        .unpack(folder)
        .with_context(|| format!("cannot unpack the results into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, SeekFrom};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::name_kept("a/b", "a/b", "/payload/b")]
    #[case::destination("a/b:/c/d", "a/b", "/c/d")]
    #[case::colon_in_source("a:b:/c", "a:b", "/c")]
    fn payload_is_a_source_and_a_destination(
        #[case] text: &str,
        #[case] source: &str,
        #[case] destination: &str,
    ) {
        let payload: Payload = text.parse().unwrap();

        assert_eq!(payload.source, Path::new(source));
        assert_eq!(payload.destination, Path::new(destination));
    }

    #[rstest]
    #[case("a:b", "the payload's destination \"b\" is not an absolute path")]
    #[case("/", "the payload / has no name; give it one: SOURCE:DESTINATION")]
    fn payload_without_a_place_is_refused(#[case] text: &str, #[case] message: &str) {
        assert_eq!(text.parse::<Payload>().unwrap_err().to_string(), message);
    }

    #[test]
    fn disk_holds_the_files_and_keeps_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache")).unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        fs::write(folder.path().join("in/file"), "contents").unwrap();
        let payload = Payload {
            source: folder.path().join("in"),
            destination: "/payload/out".into(),
        };

        let mut disk = Disk::new(&cache, &[payload]).unwrap();

        assert_eq!(disk.file.metadata().unwrap().len(), DISK_SIZE);
        disk.file.seek(SeekFrom::Start(0)).unwrap();
        unpack_results(disk.file.try_clone().unwrap(), &folder.path().join("again")).unwrap();
        let mut text = String::new();
        File::open(folder.path().join("again/payload/out/file"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "contents");
    }
}
