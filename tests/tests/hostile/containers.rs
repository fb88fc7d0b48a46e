// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container that plants links and device nodes.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use coracle_tests::{Host, Image};

use crate::setup::{Victim, tree};

#[test]
fn links_in_the_writable_layer_are_removed_and_not_followed() {
    let host = Host::with_shared_images();
    let victim = Victim::new(&host);
    let target = victim.path.display();
    let script = format!(
        "for place in / /tmp /etc /work /upper; do mkdir -p $place; cd $place
             for name in link upper work share rootfs .removed-1-1 \"$(printf 'a\\nb')\" \"$(printf '\\377')\"; do
                 ln -s {target} \"$name\"; ln -s {target}/file \"$name.file\"; ln -s ../../../../../../..{target} \"$name.up\"
             done
             mkdir sealed; ln -s {target} sealed/link; chmod 0 sealed; chattr +i sealed
         done
         rm -rf /bin; ln -s {target} /bin; echo planted"
    );

    let run = host.container(Image::BUSYBOX).shell(&script).expect(0);

    assert_eq!(run.text(), "planted");
    host.assert_clean();
    victim.assert_unharmed();
}

#[test]
fn links_that_change_while_a_killed_run_is_cleaned_up_are_not_followed() {
    let host = Host::with_shared_images();
    let victim = Victim::new(&host);
    let mut run = host
        .container_on(&tree(&host))
        .command([
            "/hostile",
            "swap links",
            "/swapped",
            victim.path.to_str().unwrap(),
        ])
        .start();
    assert_eq!(run.line(), "swapping");
    thread::sleep(Duration::from_millis(200));

    run.signal(libc::SIGKILL);

    run.finish().expect(137);
    host.assert_clean();
    victim.assert_unharmed();
}

#[test]
fn streams_of_an_executed_command_cannot_be_taken() {
    let host = Host::with_shared_images();
    let mut run = host
        .container_on(&tree(&host))
        .option("--name", "c")
        .command(["/hostile", "take streams"])
        .start();
    assert_eq!(run.line(), "calling");

    for _ in 0..10 {
        let command = host
            .run(&["exec", "c", "sh", "-c", "echo mine; exit 3"])
            .expect(3);
        assert_eq!(command.text(), "mine");
        assert_eq!(command.stderr, "");
    }

    host.run(&["kill", "c"]).expect(0);
    run.finish().expect(137);
    host.assert_clean();
}

#[test]
fn links_in_a_volume_lead_nowhere_on_the_host() {
    let host = Host::with_shared_images();
    let victim = Victim::new(&host);
    let volume = host.folder("volume");
    symlink(&victim.path, volume.join("absolute")).unwrap();
    symlink("../victim", volume.join("relative")).unwrap();
    let script = format!(
        "cd /data; ln -s {target} planted; ln -s ../../../../../../..{target} planted-up
         for link in absolute relative planted planted-up; do
             cat $link/file; echo x > $link/file; echo x > $link/new; rm -r $link/directory
         done 2>/dev/null; echo tried",
        target = victim.path.display()
    );

    let run = host
        .container(Image::BUSYBOX)
        .volume(&volume, "/data")
        .shell(&script)
        .expect(0);

    assert_eq!(run.text(), "tried");
    victim.assert_unharmed();
    host.assert_clean();
}

#[test]
fn device_nodes_that_a_container_makes_open_nothing() {
    let host = Host::with_shared_images();
    let tree = tree(&host);
    // One that the image brings along, of the host's disk; /dev/null shows that the others would be opened.
    coracle_tests::tools::run(
        "mknod",
        &[tree.join("disk").to_str().unwrap(), "b", "254", "0"],
    );
    let script = "
        open() { (: < $1) 2>/dev/null && echo opened for reading: $1 $2; (: >> $1) 2>/dev/null && echo opened for writing: $1 $2; }
        open /disk image
        for place in /dev /dev/shm /tmp; do
            /bin/busybox mkdir -p $place
            while read minor name; do set -- \"$@\" \"c 10 $minor\"; done < /proc/misc
            for node in 'c 1 3' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 4 64' 'c 229 0' 'c 250 0' 'b 254 0' 'b 8 0' 'b 7 0' 'b 1 0' \"$@\"; do
                /bin/busybox mknod $place/node $node 2>/dev/null && open $place/node \"$node\"
                /bin/busybox rm -f $place/node
            done
        done; echo tried";

    let run = host.container_on(&tree).shell(script).expect(0);

    let text = run.text();
    let (opened, others): (Vec<_>, Vec<_>) = text
        .lines()
        .partition(|line| line.starts_with("opened") && line.ends_with("c 1 3"));
    assert_eq!(opened.len(), 4, "/dev/null can be opened: {text}");
    assert_eq!(others, ["tried"]);
    host.assert_clean();
}

#[test]
fn container_that_calls_the_host_or_the_agent_is_not_heard() {
    let host = Host::with_shared_images();

    let run = host
        .container_on(&tree(&host))
        .command(["/hostile", "call"])
        .expect(0);

    assert_eq!(run.text(), "called");
    host.assert_clean();
}

#[test]
fn parent_of_the_root_is_the_root_with_all_that_is_mounted_there() {
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    fs::write(volume.join("file"), "").unwrap();
    let script = "cd /tmp; test -f ../data/file && test -f ../../data/file && test -f /../data/file \
                  && test -e /bin/../proc/uptime && test -c /../dev/null && echo all there; cat /proc/mounts";

    let run = host
        .container(Image::BUSYBOX)
        .volume(&volume, "/data")
        .shell(script)
        .finish();

    assert!(run.text().starts_with("all there"), "{}", run.text());
    let mounts_of = |point: &str| run.text().matches(&format!(" {point} ")).count();
    assert_eq!(
        [mounts_of("/"), mounts_of("/data")],
        [1, 1],
        "{}",
        run.text()
    );
}
