//! A guarded database that becomes another one, by a major upgrade or on another host: its
//! trail goes on, and says so (docs/upgrades.md).

use crate::harness::Server;
use crate::world::World;

const SOURCE: &str = "tables = [\"public.*\"]";
const ROWS: &str = "CREATE TABLE visit (id int PRIMARY KEY, note text);
    INSERT INTO visit SELECT n, 'note ' || n FROM generate_series(1, 50) n;
    UPDATE visit SET note = 'seen' WHERE id < 10";

#[test]
fn a_trail_goes_on_when_its_database_is_another_one_and_shows_what_changed_on_the_way() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql("postgres", ROWS);
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("guard uninstall").exits(0);

    // The same rows on another server, but for one.
    world.server = Server::start(&[], &[]).unwrap();
    let mut create = world.server.client("psql", "postgres");
    create.args(["-qX", "-d", "postgres", "-c", "CREATE DATABASE clinic"]);
    assert!(create.status().unwrap().success());
    world.psql("postgres", ROWS);
    world.psql("postgres", "UPDATE visit SET note = 'x' WHERE id = 7");
    world.configure("scan_every_s = 0", SOURCE);
    let refused = world.run("guard init").exits(3).says("CAP-02");
    let (_, found) = refused.err.split_once("system = \"").unwrap();
    let (found, _) = found.split_once('"').unwrap();

    // A word about one database is none about another.
    let system = |system: &str| format!("{SOURCE}\nsystem = \"{system}\"");
    world.configure("scan_every_s = 0", &system("postgres:1/2"));
    world.run("guard init").exits(3).says("CAP-02");
    world.configure("scan_every_s = 0", &system(found));
    world
        .run("guard init")
        .exits(0)
        .says("The trail goes on with a gap");
    world.guard();
    let told = world.finding("CAP-02", "");
    let text = told["text"].as_str().unwrap();
    assert!(text.contains("another database (identifier"), "{text}");
    assert_eq!(world.wrong(), ["ROW-01 public.visit 7"]);
    world.psql("postgres", "UPDATE visit SET note = 'seen' WHERE id = 7");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0).says("intact");
}
