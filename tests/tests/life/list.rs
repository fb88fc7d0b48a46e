// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `ps`, `inspect` and `stats` say is true.

use coracle_tests::{Host, Image};
use serde_json::Value;

use super::{FOREVER, start};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn container_is_listed_from_its_start_to_its_removal() {
    let host = Host::with_shared_images();
    let id = host
        .container(Image::BUSYBOX)
        .detached()
        .option("--name", "web")
        .shell("sleep 2; exit 3")
        .expect(0)
        .text();

    let running = host.run(&["ps"]).expect(0).text();
    let ids = host.run(&["ps", "-q"]).expect(0).text();
    host.await_status("web", "exited (3)");
    let ended = host.run(&["ps"]).expect(0).text();
    host.run(&["rm", "web"]).expect(0);

    assert_eq!(id.len(), 12);
    assert_eq!(ids, id);
    assert!(
        running.contains("web") && running.contains("running for"),
        "{running}"
    );
    assert_eq!(ended.lines().count(), 1, "{ended}");
    assert_eq!(host.run(&["ps", "--all", "-q"]).expect(0).text(), "");
    host.assert_clean();
}

#[test]
fn container_is_inspected_by_its_name_its_id_and_the_beginning_of_that() {
    let host = Host::with_shared_images();
    let id = host
        .container(Image::BUSYBOX)
        .detached()
        .option("--name", "web")
        .command(["true"])
        .expect(0)
        .text();
    host.await_status("web", "exited (0)");

    let found =
        ["web", &id, &id[..6]].map(|name| json(&host.run(&["inspect", name]).expect(0).text()));

    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
    let container = &found[0][0];
    assert_eq!(container["id"], id.as_str());
    assert_eq!(container["status"]["is"], "exited");
    assert_eq!(container["plan"]["spec"]["process"]["args"][0], "true");
    host.run(&["rm", "web"]).expect(0);
}

#[test]
fn killed_runner_leaves_a_container_that_is_called_lost() {
    let host = Host::with_shared_images();
    start(&host, "web", Image::BUSYBOX, FOREVER);
    let status = json(&host.run(&["inspect", "web"]).expect(0).text());
    let runner = status[0]["status"]["runner"].as_i64().unwrap();

    coracle_tests::tools::kill(i32::try_from(runner).unwrap());

    host.await_status("web", "lost");
    assert_eq!(
        host.run(&["ps", "-q"]).expect(0).text(),
        "",
        "it is not running"
    );
    host.run(&["exec", "web", "true"])
        .expect(125)
        .says_once(&["is not running"]);
    host.run(&["stop", "web"]).expect(0);
    host.run(&["rm", "web"]).expect(0);
    host.assert_clean();
}

#[test]
fn name_is_one_containers_until_that_is_removed() {
    let host = Host::with_shared_images();
    let again = || {
        host.container(Image::BUSYBOX)
            .kept()
            .option("--name", "web")
            .command(["true"])
            .finish()
    };
    again().expect(0);

    again()
        .expect(125)
        .says_once(&["the name 'web' is that of container", "coracle rm"]);

    host.run(&["rm", "web"]).expect(0);
    again().expect(0);
    host.run(&["rm", "web"]).expect(0);
    host.assert_clean();
}

#[test]
fn container_whose_command_never_ran_is_not_kept() {
    let host = Host::with_shared_images();

    host.container(Image::BUSYBOX)
        .kept()
        .command(["nosuch"])
        .expect(127);

    assert_eq!(host.run(&["ps", "--all", "-q"]).expect(0).text(), "");
    host.assert_clean();
}

#[test]
fn use_is_counted_in_the_guest_and_on_the_host() {
    let host = Host::with_shared_images();
    start(&host, "busy", Image::BUSYBOX, "while :; do :; done");

    let row = json(
        &host
            .run(&["stats", "--no-stream", "--json"])
            .expect(0)
            .text(),
    );

    assert_eq!(row["name"], "busy");
    let share = row["cpu_percent"].as_f64().unwrap();
    assert!(share > 20.0 && share < 150.0, "{row}");
    let usage = &row["usage"];
    assert!(usage["memory"].as_u64().unwrap() > 0, "{row}");
    assert_eq!(usage["memory_limit"].as_u64().unwrap(), 256 << 20);
    assert!(usage["pids"].as_u64().unwrap() >= 1, "{row}");
    assert!(usage["host_memory"].as_u64().unwrap() > 10 << 20, "{row}");
    assert!(usage["host_cpu_usec"].as_u64().unwrap() > 0, "{row}");
    host.run(&["rm", "--force", "busy"]).expect(0);
    host.assert_clean();
}

#[test]
fn whoever_is_not_there_is_named() {
    let host = Host::new();

    for command in ["inspect", "logs", "stop", "kill", "rm"] {
        host.run(&[command, "nobody"])
            .expect(125)
            .says_once(&["there is no container 'nobody'"]);
    }
    host.assert_clean();
}

#[test]
fn figures_of_one_go_on_after_another_has_gone() {
    let host = Host::with_shared_images();
    start(&host, "first", Image::BUSYBOX, FOREVER);
    start(&host, "other", Image::BUSYBOX, FOREVER);
    let mut run = host.start(host.coracle(&["stats", "--json", "first", "other"]));
    while !run.line().contains("\"first\"") {}

    host.run(&["rm", "-f", "first"]).expect(0);

    let after = (0..10).map(|_| run.line()).collect::<Vec<_>>();
    assert!(
        after[5..].iter().all(|line| line.contains("\"other\"")),
        "{after:?}"
    );
    host.run(&["rm", "-f", "other"]).expect(0);
    run.finish()
        .expect(125)
        .says_once(&["none of the containers is running any more"]);
    host.assert_clean();
}
