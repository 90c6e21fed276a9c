//! A shell on a terminal, as people use it.

use culvert_tests::{process::culvert_binary, terminal::Terminal};

use super::scene::Scene;

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// An interactive shell whose prompt nobody else writes.
fn shell(scene: &Scene) -> Terminal {
    let mut command = scene.sandbox.command_beside_daemons("bash");
    command
        .args(["--norc", "--noprofile", "-i"])
        .env("PS1", "%prompt%")
        .env("TERM", "dumb");
    let mut terminal = Terminal::start(&mut command);
    terminal.await_text("%prompt%");
    terminal
}

fn line(scene: &Scene, command: &str) -> String {
    let culvert = culvert_binary();
    format!(
        "{} exec --via socks5://{} -- {command}\n",
        culvert.display(),
        scene.proxy.address()
    )
}

#[test]
fn ctrl_c_ends_the_command() {
    let scene = Scene::new();
    let mut terminal = shell(&scene);
    // `exec`: dash loses a SIGINT that arrives while it is between fork and the sleep, with or without culvert.
    terminal.type_in(&line(&scene, "sh -c 'echo star''ted; exec sleep 1000'"));
    terminal.await_text("started\r\n");
    terminal.type_in(CTRL_C);
    terminal.await_text("%prompt%");
    terminal.type_in("echo status $?\n");
    terminal.await_text("status 130");
    scene_is_empty(&scene, terminal);
}

#[test]
fn ctrl_z_stops_it_and_fg_continues_it() {
    let scene = Scene::new();
    let mut terminal = shell(&scene);
    let command = format!(
        "sh -c 'echo star''ted; read word; curl -sS {}; echo $word'",
        scene.url()
    );
    terminal.type_in(&line(&scene, &command));
    terminal.await_text("started\r\n");
    for _ in 0..3 {
        terminal.type_in(CTRL_Z);
        terminal.await_text("Stopped");
        terminal.await_text("%prompt%");
        terminal.type_in("fg\n");
        terminal.await_text("exec --via");
        terminal.await_running_job();
    }
    terminal.type_in("again\n");
    terminal.await_text("page\r\nagain\r\n");
    terminal.await_text("%prompt%");
    assert_eq!(scene.proxy.requests(), [scene.web.address()]);
    scene_is_empty(&scene, terminal);
}

#[test]
fn in_the_background_it_works_as_well() {
    let scene = Scene::new();
    let mut terminal = shell(&scene);
    let command = format!("curl -sS {} &", scene.url());
    terminal.type_in(&line(&scene, &command));
    terminal.await_text("page\r\n");
    terminal.type_in("wait; echo all do''ne\n");
    terminal.await_text("all done");
    scene_is_empty(&scene, terminal);
}

fn scene_is_empty(scene: &Scene, terminal: Terminal) {
    drop(terminal);
    scene.await_nothing_left();
}
