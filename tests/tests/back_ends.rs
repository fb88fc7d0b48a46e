// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers with devices that other programs serve over vhost-user.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::{Host, Image};

/// How long a program may take to listen at its socket.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk image that QEMU's storage daemon serves, which is killed when dropped.
struct StorageDaemon(Child);

impl StorageDaemon {
    fn serve(image: &Path, socket: &Path) -> Self {
        let node = format!("driver=file,node-name=disk,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        let process = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self(process);
        let begun = Instant::now();
        while !socket.exists() {
            assert!(
                begun.elapsed() < PATIENCE,
                "the storage daemon does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An ext4 image with the file `name`.
fn image_with(host: &Host, name: &str) -> std::path::PathBuf {
    let tree = host.folder("tree");
    fs::write(tree.join(name), name).unwrap();
    let image = host.files().join(format!("{name}.img"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-d"])
        .args([&tree, &image])
        .status()
        .unwrap();
    assert!(made.success());
    fs::remove_file(tree.join(name)).unwrap();
    image
}

/// Two of them, and one of our own, whose serial number theirs have nothing to do with.
#[test]
fn disks_of_a_storage_daemon_are_where_they_are_wanted() {
    let host = Host::with_shared_images();
    let images = ["one", "two", "own"].map(|name| image_with(&host, name));
    let sockets = ["one.sock", "two.sock"].map(|name| host.files().join(name));
    let daemons = [0, 1].map(|place| StorageDaemon::serve(&images[place], &sockets[place]));

    let run = host
        .container(Image::BUSYBOX)
        .option("--vhost-user-blk", format!("{}:/one", sockets[0].display()))
        .option(
            "--vhost-user-blk",
            format!("{}:/two:ro", sockets[1].display()),
        )
        .option("--disk", format!("{}:/own", images[2].display()))
        .shell(
            "cat /one/one /two/two /own/own; echo written >/one/new && sync; \
             echo x >/two/new 2>/dev/null || echo read-only",
        )
        .expect(0);

    assert_eq!(run.text(), "onetwoownread-only");
    drop(daemons);
    let found = Command::new("debugfs")
        .args(["-R", "cat /new"])
        .arg(&images[0])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "written\n");
    host.assert_clean();
}

#[test]
fn device_of_a_storage_daemon_is_the_containers() {
    let host = Host::with_shared_images();
    let image = host.files().join("raw.img");
    fs::write(&image, [b"raw\n".as_slice(), &[0; 4092]].concat()).unwrap();
    let socket = host.files().join("raw.sock");
    let _daemon = StorageDaemon::serve(&image, &socket);

    let run = host
        .container(Image::BUSYBOX)
        .option(
            "--vhost-user-blk",
            format!("{}:/dev/xvda", socket.display()),
        )
        .shell("head -n 1 /dev/xvda")
        .expect(0);

    assert_eq!(run.text(), "raw");
    host.assert_clean();
}

/// DPDK's test program as a switch between a machine and a tap of the host, which it makes.
struct Switch(Child);

impl Switch {
    fn connect(socket: &Path, tap: &str, directory: &Path) -> Self {
        let mut command = Command::new("dpdk-testpmd");
        command
            .args(["--no-huge", "-m", "128", "--no-pci", "--no-shconf"])
            .args(["--file-prefix=coracle-test", "--lcores", "0@0,1@0"])
            .arg("--vdev")
            .arg(format!("net_vhost0,iface={},queues=1", socket.display()))
            .arg("--vdev")
            .arg(format!("net_tap0,iface={tap}"))
            .args(["--", "--forward-mode=io", "--auto-start", "--no-mlockall"])
            .arg("--total-num-mbufs=4096")
            .env("RUNTIME_DIRECTORY", directory);
        let process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let switch = Self(process);
        let begun = Instant::now();
        while !(socket.exists() && Path::new("/sys/class/net").join(tap).exists()) {
            assert!(begun.elapsed() < PATIENCE, "the switch does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        switch
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn interface_of_a_switch_in_user_space_has_its_address() {
    let host = Host::with_shared_images();
    let socket = host.files().join("net.sock");
    let switch = Switch::connect(&socket, "coracle-test0", &host.files());
    for words in [
        &["link", "set", "coracle-test0", "up"][..],
        &["address", "add", "10.99.0.1/24", "dev", "coracle-test0"],
    ] {
        assert!(Command::new("ip").args(words).status().unwrap().success());
    }

    let run = host
        .container(Image::BUSYBOX)
        .option("--network", "none")
        .option(
            "--vhost-user-net",
            format!(
                "{},ip=10.99.0.2/24,gateway=10.99.0.1,mac=02:00:00:00:00:07",
                socket.display()
            ),
        )
        .shell("cat /sys/class/net/eth0/address; ip route | head -n 1; ping -c 1 -W 20 10.99.0.1 | grep -c 'bytes from'")
        .expect(0);

    assert_eq!(
        run.text(),
        "02:00:00:00:00:07\ndefault via 10.99.0.1 dev eth0 \n1"
    );
    drop(switch);
    host.assert_clean();
}
