// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks, set up in network namespaces of their own, on pairs of virtual devices. They need root, `ip` and a kernel with
//! veth; without them the cases count as ignored.

use std::process::{Command, ExitCode};
use std::thread;

use coracle_agent::network;
use coracle_agent_api::messages::{Interface, Neighbour, Route};
use coracle_agent_api::{AgentError, ErrorKind};
use libtest_mimic::{Arguments, Trial};
use rustix::thread::UnshareFlags;

/// A function and its name.
macro_rules! trials {
    ($ignored:expr, $($case:ident),+ $(,)?) => {
        vec![$(Trial::test(stringify!($case), || {
            $case();
            Ok(())
        })
        .with_ignored_flag($ignored)),+]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lack = lack();
    if let Some(lack) = &lack {
        eprintln!("networks: ignored, since {lack}");
    }
    let trials = trials![
        lack.is_some(),
        interface_is_found_named_addressed_and_up,
        interfaces_swap_their_names,
        routes_are_added,
        route_of_the_interfaces_own_network_is_there_already,
        neighbours_are_permanent,
        missing_device_is_named,
        route_that_the_kernel_refuses_is_named,
        mtu_that_the_kernel_refuses_is_named,
        setting_up_twice_is_no_failure,
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What is missing for these cases, if anything is.
fn lack() -> Option<String> {
    let devices = || -> Result<(), String> {
        unshare()?;
        run("ip link add coracle0 type veth peer name coracle1").map(drop)
    };
    thread::spawn(devices).join().unwrap().err()
}

fn unshare() -> Result<(), String> {
    // SAFETY: only this thread's view of the network changes, and it has no sockets.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| format!("no network namespace can be made: {error}"))
}

fn run(command: &str) -> Result<String, String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .map_err(|error| format!("`{command}` fails: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(format!(
            "`{command}` fails: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// What `ip` says, without what only fills lines.
fn ip(arguments: &str) -> String {
    let output = run(&format!("ip {arguments}")).unwrap();
    output.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs `case` on a thread in a network namespace of its own, with the devices eth0 and eth1 in it, and their peers.
fn with_devices<T: Send + 'static>(case: impl FnOnce() -> T + Send + 'static) -> T {
    let in_namespace = move || {
        unshare().unwrap();
        for number in 0..2 {
            let command = format!(
                "ip link add eth{number} address 02:00:00:00:00:0{number} type veth peer name peer{number}"
            );
            run(&command).unwrap();
            run(&format!("ip link set peer{number} up")).unwrap();
        }
        case()
    };
    thread::spawn(in_namespace).join().unwrap()
}

fn interface(device: u8, name: &str, addresses: &[&str]) -> Interface {
    Interface {
        mac: vec![2, 0, 0, 0, 0, device],
        name: name.to_owned(),
        addresses: addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect(),
        ..Interface::default()
    }
}

fn route(destination: &str, gateway: &str, interface: &str) -> Route {
    Route {
        destination: destination.to_owned(),
        gateway: gateway.to_owned(),
        interface: interface.to_owned(),
        ..Route::default()
    }
}

fn set_up(interfaces: &[Interface], routes: &[Route]) -> Result<(), AgentError> {
    network::set_up(interfaces, routes, &[])
}

fn interface_is_found_named_addressed_and_up() {
    let (result, shown, loopback) = with_devices(|| {
        let interface = Interface {
            mtu: 1400,
            ..interface(
                1,
                "uplink",
                &["10.88.0.5/16", "192.168.1.1/32", "fd00::5/64"],
            )
        };
        let result = set_up(&[interface], &[]);
        (result, ip("address show uplink"), ip("address show lo"))
    });

    result.unwrap();
    for part in [
        "mtu 1400",
        ",UP,",
        "link/ether 02:00:00:00:00:01",
        "inet 10.88.0.5/16 brd 10.88.255.255 scope global uplink",
        "inet 192.168.1.1/32 scope global uplink",
        // At once, and not tentative until nobody has answered for a second.
        "inet6 fd00::5/64 scope global nodad valid_lft",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(loopback.contains("127.0.0.1/8"), "{loopback}");
}

fn interfaces_swap_their_names() {
    let (result, first, second) = with_devices(|| {
        let result = set_up(&[interface(1, "eth0", &[]), interface(0, "eth1", &[])], &[]);
        (result, ip("link show eth0"), ip("link show eth1"))
    });

    result.unwrap();
    assert!(first.contains("02:00:00:00:00:01"), "{first}");
    assert!(second.contains("02:00:00:00:00:00"), "{second}");
}

fn routes_are_added() {
    let (result, four, six) = with_devices(|| {
        let interfaces = [
            interface(0, "eth0", &["10.88.0.5/16", "fd00::5/64"]),
            interface(1, "eth1", &["10.99.0.5/32"]),
        ];
        let routes = [
            route("0.0.0.0/0", "10.88.0.1", "eth0"),
            route("192.168.0.0/24", "", "eth1"),
            Route {
                on_link: true,
                metric: 7,
                source: "10.99.0.5".to_owned(),
                ..route("172.16.0.0/12", "169.254.1.1", "eth1")
            },
            route("::/0", "fd00::1", "eth0"),
            route("fd01::/64", "", "eth0"),
        ];
        let result = set_up(&interfaces, &routes);
        (result, ip("route"), ip("-6 route"))
    });

    result.unwrap();
    for part in [
        "default via 10.88.0.1 dev eth0 proto static",
        "192.168.0.0/24 dev eth1 proto static scope link",
        "172.16.0.0/12 via 169.254.1.1 dev eth1 proto static src 10.99.0.5 metric 7 onlink",
    ] {
        assert!(four.contains(part), "{four}");
    }
    for part in [
        "default via fd00::1 dev eth0 proto static",
        "fd01::/64 dev eth0 proto static",
    ] {
        assert!(six.contains(part), "{six}");
    }
}

fn route_of_the_interfaces_own_network_is_there_already() {
    let result = with_devices(|| {
        set_up(
            &[interface(0, "eth0", &["10.88.0.5/16"])],
            &[route("10.88.0.0/16", "", "eth0")],
        )
    });

    result.unwrap();
}

fn neighbours_are_permanent() {
    let (result, shown) = with_devices(|| {
        let neighbour = |address: &str| Neighbour {
            address: address.to_owned(),
            mac: vec![2, 0, 0, 0, 0, 9],
            interface: "eth0".to_owned(),
            ..Neighbour::default()
        };
        let result = network::set_up(
            &[interface(0, "eth0", &["10.88.0.5/16", "fd00::5/64"])],
            &[],
            &[neighbour("10.88.0.1"), neighbour("fd00::1")],
        );
        (result, ip("neighbour show dev eth0"))
    });

    result.unwrap();
    for part in [
        "10.88.0.1 lladdr 02:00:00:00:00:09 PERMANENT",
        "fd00::1 lladdr 02:00:00:00:00:09 PERMANENT",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

fn missing_device_is_named() {
    let error = with_devices(|| set_up(&[interface(7, "eth0", &[])], &[])).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Network);
    assert_eq!(
        error.message,
        "cannot find the network device 02:00:00:00:00:07 for interface eth0: No such device (os error 19)"
    );
}

fn route_that_the_kernel_refuses_is_named() {
    let error = with_devices(|| {
        set_up(
            &[interface(0, "eth0", &["10.88.0.5/16"])],
            &[route("0.0.0.0/0", "10.99.0.1", "eth0")],
        )
    })
    .unwrap_err();

    assert_eq!(error.kind, ErrorKind::Network);
    let start = "cannot add the route to 0.0.0.0/0 via 10.99.0.1 of interface eth0: ";
    assert!(error.message.starts_with(start), "{error}");
    // In the kernel's own words.
    assert!(
        error.message.contains("Nexthop has invalid gateway"),
        "{error}"
    );
}

fn mtu_that_the_kernel_refuses_is_named() {
    let interface = Interface {
        mtu: 1 << 30,
        ..interface(0, "eth0", &[])
    };

    let error = with_devices(|| set_up(&[interface], &[])).unwrap_err();

    let start = "cannot set the MTU of interface eth0 to 1073741824: ";
    assert!(error.message.starts_with(start), "{error}");
}

fn setting_up_twice_is_no_failure() {
    let results = with_devices(|| {
        let interfaces = [interface(0, "uplink", &["10.88.0.5/16", "fd00::5/64"])];
        [set_up(&interfaces, &[]), set_up(&interfaces, &[])]
    });

    assert_eq!(results, [Ok(()), Ok(())]);
}
