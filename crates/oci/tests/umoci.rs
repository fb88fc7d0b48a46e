// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image that another tool made. Where umoci, busybox or root is missing, these tests are
//! reported as ignored.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::is_root;
use coracle_oci::image::{Reference, Source};
use coracle_oci::layer::Options;
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::{self, Overrides};
use coracle_oci::store::{Rootfs, Store};
use coracle_oci::tree_hash::tree_hash;
use coracle_oci::user;
use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() {
    let can_run = is_root()
        && is_there("umoci", "--version")
        && is_there("tar", "--version")
        && busybox().is_some();
    let tests: [Test; 3] = [
        (
            "image_of_umoci_is_unpacked_as_by_umoci",
            image_of_umoci_is_unpacked_as_by_umoci,
        ),
        (
            "archive_of_the_image_gives_the_same_tree",
            archive_of_the_image_gives_the_same_tree,
        ),
        (
            "config_of_umoci_becomes_a_plan",
            config_of_umoci_becomes_a_plan,
        ),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, test)
            .with_kind("root, umoci, busybox")
            .with_ignored_flag(!can_run)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn is_there(program: &str, argument: &str) -> bool {
    let outcome = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    outcome.is_ok_and(|status| status.success())
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failed> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into())
    }
}

/// A layout with a busybox image of two layers, the second of which deletes, replaces and links.
struct Made {
    directory: tempfile::TempDir,
}

impl Made {
    fn new() -> Result<Self, Failed> {
        let made = Self {
            directory: tempfile::tempdir()?,
        };
        let image = made.image();
        let tagged = format!("{}:test", image.display());
        let (bundle, bundle_text) = made.path("bundle");
        run(
            "umoci",
            &["init", "--layout", image.to_str().unwrap_or_default()],
        )?;
        run("umoci", &["new", "--image", &tagged])?;
        run("umoci", &["unpack", "--image", &tagged, &bundle_text])?;
        fill(&bundle.join("rootfs"))?;
        run(
            "umoci",
            &[
                "repack",
                "--refresh-bundle",
                "--image",
                &tagged,
                &bundle_text,
            ],
        )?;
        change(&bundle.join("rootfs"))?;
        run("umoci", &["repack", "--image", &tagged, &bundle_text])?;
        run(
            "umoci",
            &[
                "config",
                "--image",
                &tagged,
                "--config.cmd",
                "/bin/busybox",
                "--config.cmd",
                "sh",
                "--config.env",
                "A=1",
                "--config.workingdir",
                "/srv",
                "--config.user",
                "web",
            ],
        )?;
        Ok(made)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn path(&self, name: &str) -> (PathBuf, String) {
        let path = self.directory.path().join(name);
        let text = path.display().to_string();
        (path, text)
    }

    fn unpacked(&self, reference: &str, store: &str) -> Result<Rootfs, Failed> {
        let reference = Reference::parse(reference)?;
        let source = Source::open(&reference.path)?;
        let image = source.image(reference.tag.as_deref())?;
        Ok(Store::open(self.directory.path().join(store))?.unpacked(
            &source,
            &image,
            Options::default(),
        )?)
    }
}

fn fill(root: &Path) -> Result<(), Failed> {
    for directory in ["bin", "etc", "srv", "old", "gone/deep"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(busybox().ok_or("no busybox")?, root.join("bin/busybox"))?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o4755))?;
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh"))?;
    symlink("busybox", root.join("bin/ls"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nadm:x:4:web\n")?;
    fs::write(root.join("old/f"), "old")?;
    fs::write(root.join("gone/deep/f"), "gone")?;
    std::os::unix::fs::chown(root.join("srv"), Some(33), Some(33))?;
    Ok(())
}

fn change(root: &Path) -> Result<(), Failed> {
    fs::remove_dir_all(root.join("gone"))?;
    fs::remove_dir_all(root.join("old"))?;
    fs::write(root.join("old"), "now a file")?;
    symlink("../etc", root.join("srv/etc"))?;
    fs::write(root.join("srv").join("x".repeat(200)), "a long name")?;
    Ok(())
}

/// Names, types, modes, owners and contents, as `tar` sees them.
fn archive_listing(root: &Path) -> Result<String, Failed> {
    let output = Command::new("sh")
        .args(["-c", "cd \"$1\" && find . -printf '%P %y %m %U %G %n %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum", "sh"])
        .arg(root)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn image_of_umoci_is_unpacked_as_by_umoci() -> Result<(), Failed> {
    let made = Made::new()?;
    let tagged = format!("{}:test", made.image().display());
    let (theirs, text) = made.path("theirs");
    run("umoci", &["unpack", "--image", &tagged, &text])?;

    let ours = made.unpacked(&tagged, "store")?;

    let listing = archive_listing(&ours.path)?;
    assert_eq!(listing, archive_listing(&theirs.join("rootfs"))?);
    assert!(listing.contains("bin/busybox f 4755 0 0 2"), "{listing}");
    let time = |root: &Path| {
        fs::metadata(root.join("etc/passwd"))
            .map(|metadata| (metadata.mtime(), metadata.mtime_nsec()))
    };
    assert_eq!(time(&ours.path)?, time(&theirs.join("rootfs"))?);
    Ok(())
}

fn archive_of_the_image_gives_the_same_tree() -> Result<(), Failed> {
    let made = Made::new()?;
    let (_, archive) = made.path("image.tar");
    run(
        "tar",
        &[
            "-C",
            &made.image().display().to_string(),
            "-cf",
            &archive,
            ".",
        ],
    )?;

    let from_archive = made.unpacked(&format!("{archive}:test"), "store-of-archive")?;
    let from_directory = made.unpacked(&made.image().display().to_string(), "store")?;

    assert_eq!(from_archive.chain_id, from_directory.chain_id);
    assert_eq!(
        tree_hash(&from_archive.path)?,
        tree_hash(&from_directory.path)?
    );
    Ok(())
}

fn config_of_umoci_becomes_a_plan() -> Result<(), Failed> {
    let made = Made::new()?;
    let rootfs = made.unpacked(&made.image().display().to_string(), "store")?;
    let source = Source::open(made.image())?;
    let image = source.image(None)?;
    let overrides = Overrides::default();
    let user = user::resolve(
        File::open(&rootfs.path)?,
        spec::user(&image.config, &overrides),
    )?;

    let plan = SandboxPlan::new(Request {
        id: "test",
        vm: VmShape {
            vcpus: 1,
            memory_mib: 256,
        },
        config: &image.config,
        overrides: &overrides,
        user: &user,
        volumes: &[],
        places: Places {
            lower: &rootfs.path,
            upper: Path::new("/upper"),
            work: Path::new("/work"),
            share: Path::new("/share"),
            guest_share: Path::new("/run/share"),
        },
    })?;

    let process = plan.spec.process().clone().ok_or("no process")?;
    assert_eq!(
        process.args().clone().unwrap_or_default(),
        ["/bin/busybox", "sh"]
    );
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!((process.user().uid(), process.user().gid()), (33, 33));
    assert_eq!(
        process.user().additional_gids().clone().unwrap_or_default(),
        [4]
    );
    let environment = process.env().clone().unwrap_or_default();
    assert!(
        environment.contains(&"A=1".to_owned()) && environment.contains(&"HOME=/srv".to_owned()),
        "{environment:?}"
    );
    Ok(())
}
