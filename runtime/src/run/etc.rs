// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The container's own name, its hosts and its name servers, in the files that programs look for them in.
//!
//! They are written to the container's layer before it starts. The tree is an image's: the kernel resolves every name
//! inside it, whatever its symlinks say, and a link at the place of a file is replaced.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use coracle_network::Attachment;
use coracle_oci::plan::SandboxPlan;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::tree;
use crate::container::Id;

/// Hosts that every machine knows.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Writes the files of a container whose root is mounted.
pub fn write(plan: &SandboxPlan, id: &Id, attachment: Option<&Attachment>) -> Result<()> {
    let root = &plan.rootfs.mount_point;
    let name = plan.spec.hostname().as_deref().unwrap_or(id.as_str());
    tree::make_directory(root, Path::new("/etc"), "the directory")?;
    put(root, "hostname", &format!("{name}\n"))?;
    put(root, "hosts", &hosts(name, attachment))?;
    match attachment {
        Some(attachment) => put(root, "resolv.conf", &attachment.dns().to_resolv_conf()),
        None => Ok(()),
    }
}

fn hosts(name: &str, attachment: Option<&Attachment>) -> String {
    let mut text = HOSTS.to_owned();
    let interfaces = attachment.map_or(&[][..], Attachment::interfaces);
    for address in interfaces.iter().flat_map(|interface| &interface.addresses) {
        // A string takes what is written to it.
        let _ = writeln!(text, "{}\t{name}", address.addr());
    }
    text
}

/// Makes the file `name` of the tree's `/etc`, in the place of what is there.
fn put(root: &Path, name: &str, text: &str) -> Result<()> {
    let what = || {
        format!("cannot write /etc/{name} into the container's layer on this host, below --root")
    };
    let root = File::open(root).with_context(what)?;
    let etc = openat2(
        &root,
        "/etc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .with_context(what)?;
    match unlinkat(&etc, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(Errno::ISDIR) => match unlinkat(&etc, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {
                bail!("{}: it is a directory with files in it", what());
            }
            removed => removed.with_context(what)?,
        },
        Err(error) => return Err(error).with_context(what),
    }
    let file = openat(
        &etc,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )
    .with_context(what)?;
    File::from(file)
        .write_all(text.as_bytes())
        .with_context(what)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn file_takes_the_place_of_a_link_that_leads_out() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        symlink(outside.path(), tree.path().join("etc/hosts")).unwrap();

        put(tree.path(), "hosts", "mine").unwrap();

        assert_eq!(fs::read_to_string(outside.path()).unwrap(), "");
        let found = fs::read_to_string(tree.path().join("etc/hosts")).unwrap();
        assert_eq!(found, "mine");
    }

    #[test]
    fn directory_that_leads_out_stays_inside() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let inside = tree.path().join(outside.path().strip_prefix("/").unwrap());
        fs::create_dir_all(&inside).unwrap();
        symlink(outside.path(), tree.path().join("etc")).unwrap();

        put(tree.path(), "hosts", "mine").unwrap();

        assert!(!outside.path().join("hosts").exists());
        assert!(inside.join("hosts").exists());
    }

    #[test]
    fn only_an_empty_directory_is_in_nobodys_way() {
        let tree = tempfile::tempdir().unwrap();
        let [empty, full] = ["hosts", "hostname"].map(|name| tree.path().join("etc").join(name));
        fs::create_dir_all(&empty).unwrap();
        fs::create_dir_all(full.join("files")).unwrap();

        put(tree.path(), "hosts", "mine").unwrap();
        let error = put(tree.path(), "hostname", "mine").unwrap_err();

        assert_eq!(fs::read_to_string(&empty).unwrap(), "mine");
        assert_eq!(
            error.to_string(),
            "cannot write /etc/hostname into the container's layer on this host, below --root: it is a directory with files in it"
        );
    }

    #[test]
    fn without_a_network_there_is_the_machine_itself() {
        assert_eq!(hosts("web", None), HOSTS);
    }
}
