// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An OCI image layout in a directory (image-spec, image-layout): blobs by digest, and an index of named images.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_oci::digest::{Digest, Verified};
use coracle_oci::image::Descriptor;
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, flock, linkat};
use serde_json::{Value, json};

use crate::error::RegistryError;
use crate::sink::Sink;

/// Annotation with an image's name in its layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most bytes of the index.
const INDEX_LIMIT: u64 = 16 << 20;

/// A directory in the form of an OCI image layout. What is written is there whole or not at all, whenever the process
/// ends; several may write at once.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    /// Opens a layout; an empty or missing directory becomes one.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be made, or holds something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RegistryError> {
        let layout = Self {
            path: path.as_ref().to_owned(),
        };
        let failed = |what| layout.failed(what);
        fs::create_dir_all(layout.path.join("blobs/sha256"))
            .map_err(failed("its directory cannot be made"))?;
        let _lock = layout.lock()?;
        let header = layout.path.join("oci-layout");
        if !header.exists() {
            let json = json!({"imageLayoutVersion": "1.0.0"});
            replace(&header, json.to_string().as_bytes()).map_err(failed("`oci-layout`"))?;
        }
        let json = read(&header).map_err(failed("`oci-layout`"))?;
        let version = json["imageLayoutVersion"].as_str().unwrap_or_default();
        if !version.starts_with("1.") {
            let error = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its version is {}, not 1", crate::show::quoted(version)),
            );
            return Err(layout.failed("`oci-layout`")(error));
        }
        let index = layout.path.join("index.json");
        if !index.exists() {
            let json = json!({"schemaVersion": 2, "manifests": []});
            replace(&index, json.to_string().as_bytes()).map_err(failed("`index.json`"))?;
        }
        Ok(layout)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names an image whose manifest is in the layout; what had the name has it no more.
    ///
    /// # Errors
    ///
    /// Where the index cannot be read or written.
    pub fn name(&self, name: &str, manifest: &Descriptor) -> Result<(), RegistryError> {
        let failed = |what| self.failed(what);
        let _lock = self.lock()?;
        let path = self.path.join("index.json");
        let mut index = read(&path).map_err(failed("`index.json`"))?;
        let mut entry = serde_json::to_value(manifest)
            .map_err(io::Error::from)
            .map_err(failed("`index.json`"))?;
        entry["annotations"][REF_NAME] = name.into();
        let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it lists no manifests");
            return Err(failed("`index.json`")(error));
        };
        entries.retain(|entry| entry["annotations"][REF_NAME] != name);
        entries.push(entry);
        replace(&path, index.to_string().as_bytes()).map_err(failed("`index.json`"))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.path
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    /// Keeps others from changing the index.
    fn lock(&self) -> Result<File, RegistryError> {
        let directory = File::open(&self.path).map_err(self.failed("its directory"))?;
        flock(&directory, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(self.failed("its lock"))?;
        Ok(directory)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> RegistryError + Copy {
        move |source| RegistryError::Layout {
            path: self.path.clone(),
            what,
            source,
        }
    }
}

impl Sink for Layout {
    /// Reads the whole blob, so that a damaged one is pulled again.
    fn contains(&self, blob: &Descriptor) -> io::Result<bool> {
        let file = match File::open(self.blob(&blob.digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != blob.size {
            return Ok(false);
        }
        let mut content = Verified::new(file, blob.digest.clone(), blob.size);
        match io::copy(&mut content, &mut io::sink()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn store(&self, blob: &Descriptor, content: &mut dyn Read) -> io::Result<()> {
        let path = self.blob(&blob.digest);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        write(&path, content)
    }
}

/// Puts a file in place of another, or of none.
fn replace(path: &Path, mut content: &[u8]) -> io::Result<()> {
    write(path, &mut content)
}

/// Writes a file that gets its name once it is whole and on disk.
fn write(path: &Path, content: &mut dyn Read) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // Without a name it is gone with the process, however that ends.
    let nameless = OpenOptions::new()
        .write(true)
        .mode(0o644)
        .custom_flags(OFlags::TMPFILE.bits().cast_signed())
        .open(directory);
    if let Ok(mut file) = nameless {
        io::copy(content, &mut file)?;
        file.sync_all()?;
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |path: &Path| linkat(CWD, &*open, CWD, path, AtFlags::SYMLINK_FOLLOW);
        return match link(path) {
            Ok(()) => Ok(()),
            // A link never takes another's place; a name does.
            Err(rustix::io::Errno::EXIST) => {
                let temporary = Temporary::name(path);
                link(&temporary.0)?;
                fs::rename(&temporary.0, path)
            }
            Err(error) => Err(error.into()),
        };
    }
    // Not every file system has files without names.
    let temporary = Temporary::name(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary.0)?;
    io::copy(content, &mut file)?;
    file.sync_all()?;
    fs::rename(&temporary.0, path)
}

/// A name for a while, beside the one to be; what still has it at the end is removed.
struct Temporary(PathBuf);

impl Temporary {
    fn name(path: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(path.with_file_name(format!(".new-{}-{count}", process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn read(path: &Path) -> io::Result<Value> {
    let mut json = Vec::new();
    File::open(path)?
        .take(INDEX_LIMIT + 1)
        .read_to_end(&mut json)?;
    if json.len() as u64 > INDEX_LIMIT {
        let reason = format!("it has more than {INDEX_LIMIT} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coracle_oci::digest::Algorithm;
    use coracle_oci::image::Source;
    use rstest::rstest;

    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path().join("layout")).unwrap();
        (directory, layout)
    }

    fn blob(content: &[u8]) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: Digest::of(Algorithm::Sha256, content),
            size: content.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    fn files(layout: &Layout) -> usize {
        fs::read_dir(layout.path.join("blobs/sha256"))
            .unwrap()
            .count()
    }

    /// Content that breaks off.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    #[test]
    fn new_layout_is_one_for_its_reader() {
        let (_directory, layout) = layout();

        assert_eq!(
            Source::open(layout.path())
                .unwrap()
                .index()
                .unwrap()
                .manifests,
            []
        );
    }

    #[test]
    fn stored_blob_is_there() {
        let (_directory, layout) = layout();
        let blob = blob(b"content");
        assert!(!layout.contains(&blob).unwrap());

        layout.store(&blob, &mut &b"content"[..]).unwrap();

        assert!(layout.contains(&blob).unwrap());
        assert_eq!(files(&layout), 1);
    }

    #[rstest]
    #[case::of_another_size(b"other content")]
    #[case::of_the_same_size(b"contenT")]
    fn damaged_blob_is_not_there_and_is_replaced(#[case] damaged: &[u8]) {
        let (_directory, layout) = layout();
        let blob = blob(b"content");
        layout.store(&blob, &mut &damaged[..]).unwrap();
        assert!(!layout.contains(&blob).unwrap());

        layout.store(&blob, &mut &b"content"[..]).unwrap();

        assert!(layout.contains(&blob).unwrap());
        assert_eq!(files(&layout), 1);
    }

    #[test]
    fn broken_content_leaves_nothing() {
        let (_directory, layout) = layout();

        let result = layout.store(&blob(b"content"), &mut Broken);

        assert!(result.is_err());
        assert_eq!(files(&layout), 0);
    }

    #[test]
    fn name_moves_to_the_newer_image() {
        let (_directory, layout) = layout();
        let (older, newer) = (blob(b"older"), blob(b"newer"));
        layout.name("a", &older).unwrap();
        layout.name("b", &older).unwrap();

        layout.name("a", &newer).unwrap();

        let index = Source::open(layout.path()).unwrap().index().unwrap();
        let named: Vec<(&str, &Digest)> = index
            .manifests
            .iter()
            .map(|entry| (entry.annotations[REF_NAME].as_str(), &entry.digest))
            .collect();
        assert_eq!(named, [("b", &older.digest), ("a", &newer.digest)]);
    }

    #[test]
    fn layout_is_opened_again() {
        let (_directory, layout) = layout();
        layout.name("a", &blob(b"a")).unwrap();

        let again = Layout::open(layout.path()).unwrap();

        again.name("b", &blob(b"b")).unwrap();
        let index = Source::open(layout.path()).unwrap().index().unwrap();
        assert_eq!(index.manifests.len(), 2);
    }

    #[rstest]
    #[case::version("oci-layout", r#"{"imageLayoutVersion": "2.0.0"}"#)]
    #[case::no_json("oci-layout", "hello")]
    #[case::index_is_no_json("index.json", "hello")]
    #[case::index_without_list("index.json", "[]")]
    fn other_layout_is_refused(#[case] file: &str, #[case] content: &str) {
        let (_directory, layout) = layout();
        fs::write(layout.path.join(file), content).unwrap();

        let result = Layout::open(layout.path()).and_then(|layout| layout.name("a", &blob(b"a")));

        assert!(matches!(result, Err(RegistryError::Layout { .. })));
    }

    #[test]
    fn names_from_many_threads_are_all_kept() {
        let (_directory, layout) = layout();

        std::thread::scope(|scope| {
            for name in 0..8 {
                let layout = &layout;
                scope.spawn(move || layout.name(&name.to_string(), &blob(b"a")).unwrap());
            }
        });

        let index = Source::open(layout.path()).unwrap().index().unwrap();
        assert_eq!(index.manifests.len(), 8);
    }
}
