// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images and layers that other tools made. Where a tool, busybox or root is missing, these tests are
//! reported as ignored.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::image::Layout;
use common::tar::{Item, block, character, dir, fifo, file, hard, symlink};
use common::{is_root, text};
use coracle_oci::image::{PathReference, Source};
use coracle_oci::layer::{Applier, Options, Ownership};
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::{self, Overrides};
use coracle_oci::store::{Rootfs, Store};
use coracle_oci::tree_hash::tree_hash;
use coracle_oci::user;
use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() {
    let has_tar = is_there("tar", "--version");
    let has_umoci = is_root() && has_tar && is_there("umoci", "--version") && busybox().is_some();
    let has_skopeo = has_umoci && is_there("skopeo", "--version");
    let of_umoci: [Test; 4] = [
        (
            "image_of_umoci_is_unpacked_as_by_umoci",
            image_of_umoci_is_unpacked_as_by_umoci,
        ),
        (
            "layers_are_applied_as_by_umoci",
            layers_are_applied_as_by_umoci,
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
    let of_skopeo: [Test; 3] = [
        (
            "docker_archive_of_the_image_gives_the_same_tree",
            docker_archive_of_the_image_gives_the_same_tree,
        ),
        (
            "zstd_layers_of_the_image_give_the_same_tree",
            zstd_layers_of_the_image_give_the_same_tree,
        ),
        (
            "image_in_the_store_is_found_by_skopeo",
            image_in_the_store_is_found_by_skopeo,
        ),
    ];
    let of_tar: [Test; 1] = [(
        "sparse_files_of_gnu_tar_are_read",
        sparse_files_of_gnu_tar_are_read,
    )];
    let trials: Vec<Trial> = [
        trials(&of_umoci, "root, umoci, busybox", has_umoci),
        trials(&of_skopeo, "root, umoci, busybox, skopeo", has_skopeo),
        trials(&of_tar, "tar", has_tar),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trials(tests: &[Test], needs: &str, can_run: bool) -> Vec<Trial> {
    let trial = |(name, test): &Test| {
        Trial::test(*name, *test)
            .with_kind(needs)
            .with_ignored_flag(!can_run)
    };
    tests.iter().map(trial).collect()
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
        let reference = PathReference::parse(reference)?;
        let source = Source::open(&reference.path)?;
        let image = source.image(reference.tag.as_deref())?;
        Ok(Store::open(self.directory.path().join(store))?.unpacked(
            &source,
            &image,
            Options::default(),
            None,
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
    std::os::unix::fs::symlink("busybox", root.join("bin/ls"))?;
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
    std::os::unix::fs::symlink("../etc", root.join("srv/etc"))?;
    fs::write(root.join("srv").join("x".repeat(200)), "a long name")?;
    Ok(())
}

/// Names, types, modes, owners and contents, as `tar` sees them.
fn archive_listing(root: &Path) -> Result<String, Failed> {
    let output = Command::new("sh")
        .args(["-c", "cd \"$1\" && find . -printf '%P %y %m %U %G %n %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum", "sh"])
        .arg(root)
        .output()?;
    Ok(text(&output.stdout))
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

/// Layers that builders write; on what no builder should write, tools differ.
fn layers_of_builders() -> Vec<(&'static str, Vec<Vec<Item>>)> {
    let long = "n".repeat(255);
    let deep = format!("{}/f", "d".repeat(150));
    vec![
        (
            "whiteouts",
            vec![
                vec![
                    file("a", "1"),
                    dir("d"),
                    file("d/b", "2"),
                    dir("e"),
                    file("e/f", "3"),
                ],
                vec![file(".wh.a", ""), file("d/.wh.b", ""), file(".wh.e", "")],
            ],
        ),
        (
            "opaque directory before and after its content",
            vec![
                vec![dir("d"), file("d/a", "1"), dir("e"), file("e/a", "1")],
                vec![
                    dir("d"),
                    file("d/.wh..wh..opq", ""),
                    file("d/b", "2"),
                    dir("e"),
                    file("e/b", "2"),
                    file("e/.wh..wh..opq", ""),
                ],
            ],
        ),
        (
            "hard links across layers",
            vec![
                vec![file("a", "x"), hard("b", "a")],
                vec![hard("c", "a"), dir("d"), hard("d/e", "b")],
                vec![file(".wh.a", ""), file("b", "new")],
            ],
        ),
        (
            "symlinks",
            vec![
                vec![
                    dir("usr"),
                    symlink("lib", "usr"),
                    symlink("out", "/etc/passwd"),
                    symlink("up", "../../../x"),
                ],
                vec![file("lib/f", "x"), file(".wh.out", "")],
            ],
        ),
        (
            "kinds in place of each other",
            vec![
                vec![
                    dir("a"),
                    file("a/f", ""),
                    file("b", "x"),
                    symlink("c", "b"),
                    file("d", "x"),
                ],
                vec![
                    file("a", "x"),
                    dir("b"),
                    file("b/f", ""),
                    file("c", "y"),
                    symlink("d", "a"),
                ],
                vec![
                    dir("a"),
                    file("a/g", ""),
                    file("b", "z"),
                    fifo("c"),
                    character("d", 1, 3),
                ],
            ],
        ),
        (
            "nodes, modes and owners",
            vec![vec![
                character("null", 1, 3).mode(0o666),
                block("disk", 8, 1).mode(0o660).owner(0, 6),
                fifo("p").mode(0o640),
                file("suid", "x").mode(0o4755).owner(7, 8),
                file("sgid", "x").mode(0o2755).owner(7, 8),
                dir("sticky").mode(0o1777),
            ]],
        ),
        (
            "names",
            vec![vec![
                file(&long, "x"),
                dir("d".repeat(150)),
                file(&deep, "x"),
                hard("h", &deep),
                file(b"\xff\xfe", "x"),
                file(b"\xfe\xff", "y"),
                symlink(b"s\xe9", b"\xff\xfe"),
                file("short", "x").pax("path", "from a pax record"),
            ]],
        ),
        (
            "the same layer twice, and an empty one",
            vec![
                vec![dir("d").mode(0o700), file("d/f", "x"), symlink("s", "d/f")],
                vec![],
                vec![dir("d").mode(0o700), file("d/f", "x"), symlink("s", "d/f")],
            ],
        ),
        (
            "duplicate entries",
            vec![vec![
                file("a", "1"),
                file("a", "2"),
                dir("d").mode(0o700),
                dir("d").mode(0o711),
            ]],
        ),
    ]
}

fn layers_are_applied_as_by_umoci() -> Result<(), Failed> {
    for (case, layers) in layers_of_builders() {
        let place = tempfile::tempdir()?;
        let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
        let layout = Layout::with_image(&layers).write_directory(&place.path().join("image"));
        let theirs = place.path().join("theirs");
        let tagged = format!("{}:latest", layout.display());
        run(
            "umoci",
            &[
                "raw",
                "unpack",
                "--image",
                &tagged,
                &theirs.display().to_string(),
            ],
        )?;

        let source = Source::open(&layout)?;
        let image = source.image(None)?;
        let store = Store::open(place.path().join("store"))?;
        let ours = store.unpacked(&source, &image, Options::default(), None)?;

        let times = |root: &Path| -> Result<String, Failed> {
            let output = Command::new("sh")
                .args([
                    "-c",
                    "cd \"$1\" && find . -mindepth 1 ! -type d -printf '%P %T@\n' | sort",
                    "sh",
                ])
                .arg(root)
                .output()?;
            Ok(text(&output.stdout))
        };
        // What the root itself has is not in these layers.
        let below = |root: &Path| {
            archive_listing(root).map(|text| {
                let lines = text.lines().filter(|line| !line.starts_with(" d "));
                lines.map(|line| format!("{line}\n")).collect::<String>()
            })
        };
        assert_eq!(below(&ours.path)?, below(&theirs)?, "{case}");
        assert_eq!(times(&ours.path)?, times(&theirs)?, "{case}");
    }
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

/// The tree of the image as skopeo copies it.
fn copied(made: &Made, options: &[&str], target: &str, reference: &str) -> Result<Rootfs, Failed> {
    let from = format!("oci:{}:test", made.image().display());
    let arguments = [
        &["--insecure-policy", "copy", "-q"],
        options,
        &[from.as_str(), target],
    ]
    .concat();
    run("skopeo", &arguments)?;
    made.unpacked(reference, "store-of-copy")
}

fn docker_archive_of_the_image_gives_the_same_tree() -> Result<(), Failed> {
    let made = Made::new()?;
    let (_, archive) = made.path("docker.tar");

    let from_archive = copied(
        &made,
        &[],
        &format!("docker-archive:{archive}:example.org/tool:1"),
        &format!("{archive}:1"),
    )?;
    let from_directory = made.unpacked(&made.image().display().to_string(), "store")?;

    assert_eq!(
        tree_hash(&from_archive.path)?,
        tree_hash(&from_directory.path)?
    );
    Ok(())
}

fn zstd_layers_of_the_image_give_the_same_tree() -> Result<(), Failed> {
    let made = Made::new()?;
    let (_, layout) = made.path("zstd");

    let of_zstd = copied(
        &made,
        &["--dest-compress-format", "zstd"],
        &format!("oci:{layout}:test"),
        &format!("{layout}:test"),
    )?;
    let of_gzip = made.unpacked(&made.image().display().to_string(), "store")?;

    let manifests = fs::read_dir(format!("{layout}/blobs/sha256"))?;
    let says_zstd = |path: PathBuf| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(8).any(|part| part == b"tar+zstd"))
    };
    assert!(manifests.flatten().any(|blob| says_zstd(blob.path())));
    assert_eq!(tree_hash(&of_zstd.path)?, tree_hash(&of_gzip.path)?);
    Ok(())
}

fn image_in_the_store_is_found_by_skopeo() -> Result<(), Failed> {
    let made = Made::new()?;
    let store = Store::open(made.directory.path().join("store"))?;
    let source = Source::open(made.image())?;
    store.add(&"example.org/tool:1".parse()?, &source, Some("test"), None)?;

    let (_, target) = made.path("copy");
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "-q",
            &format!("oci:{}:example.org/tool:1", store.layout().display()),
            &format!("oci:{target}:copy"),
        ],
    )?;

    let (ours, theirs) = (source.image(None)?, Source::open(target)?.image(None)?);
    assert_eq!(ours.layers, theirs.layers);
    Ok(())
}

fn sparse_files_of_gnu_tar_are_read() -> Result<(), Failed> {
    let place = tempfile::tempdir()?;
    let original = place.path().join("f");
    let file = File::create(&original)?;
    for number in 0..40_u64 {
        file.write_all_at(&[b'a'; 5000], number * 100_000)?;
    }
    file.set_len(10_000_000)?;
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = Command::new("tar")
            .args(["--sparse", "-cf", "-", "-C"])
            .arg(place.path())
            .args(format)
            .arg("f")
            .output()?;
        let root = tempfile::tempdir()?;
        let options = Options {
            ownership: Ownership::Caller,
            ..Options::default()
        };

        let mut applier = Applier::new(File::open(root.path())?.into(), options);
        applier.layer("L", output.stdout.as_slice())?;
        applier.finish()?;

        let path = root.path().join("f");
        assert!(output.stdout.len() < 2_000_000, "the stream is not sparse");
        assert!(fs::read(&path)? == fs::read(&original)?, "{format:?}");
        assert!(fs::metadata(&path)?.blocks() * 512 < 2_000_000);
    }
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
        disks: &[],
        served_disks: &[],
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
