//! What becomes of the file: it is replaced, restored, gets other tables.

use super::*;

/// The guardian shows its state each second.
fn site() -> Site {
    let mut site = Site::new();
    site.tuning.heartbeat_s = 1;
    site
}

/// Attributed changes of `obs-1`, so many; each is an update.
fn change(site: &Site, times: usize) {
    let db = site.database();
    for time in 0..times {
        db.execute_batch(&format!(
            "BEGIN; INSERT INTO pitser_begin (actor) VALUES ('x');
             UPDATE observation SET value = value || '{time}' WHERE id = 'obs-1';
             INSERT INTO pitser_end DEFAULT VALUES; COMMIT"
        ))
        .unwrap();
    }
}

/// Everything that was changed is durable, and gone from the outbox.
async fn acknowledged(site: &Site, guardian: &Handle) {
    let db = site.database();
    let count = || {
        let count = "SELECT count(*) FROM pitser_outbox";
        db.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    status_with(guardian, "the outbox is empty", |_| count() == 0).await;
}

/// All of the database as one file.
fn copy(site: &Site, name: &str) -> PathBuf {
    let copy = site.dir.path().join(name);
    site.database()
        .execute("VACUUM INTO ?1", [copy.to_str().unwrap()])
        .unwrap();
    copy
}

fn remove_log(site: &Site) {
    for suffix in ["-wal", "-shm"] {
        let mut path = site.path().into_os_string();
        path.push(suffix);
        let _ = std::fs::remove_file(path);
    }
}

fn is_found(code: &str, text: &str) -> impl Fn(&Status) -> bool {
    move |s: &Status| {
        let mut found = s.findings.iter();
        found.any(|f| f.open && f.code == code && f.text.contains(text))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_takes_the_place_of_the_guarded_one_is_followed() {
    let site = site();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    let other = copy(&site, "other.db");
    std::fs::rename(other, site.path()).unwrap();
    remove_log(&site);
    change(&site, 1);
    status_with(&guardian, "CAP-02", is_found("CAP-02", "replaced")).await;
    acknowledged(&site, &guardian).await;
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_that_has_gone_on_past_the_trail_is_one() {
    let site = site();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    change(&site, 2);
    acknowledged(&site, &guardian).await;
    let old = copy(&site, "old.db");
    change(&site, 2);
    acknowledged(&site, &guardian).await;
    guardian.stop().await;
    std::fs::copy(old, site.path()).unwrap();
    remove_log(&site);
    change(&site, 5);
    let (guardian, _) = site.start(None);
    status_with(&guardian, "CAP-02", is_found("CAP-02", "")).await;
    acknowledged(&site, &guardian).await;
    // What it has done since is told, as it was done to other rows.
    status_with(&guardian, "ROW-04", is_found("ROW-04", "")).await;
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_meanwhile_is_not_taken_for_a_guarded_one() {
    let site = site();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    // One that cannot be guarded, too: whoever may make it must not stop the guardian.
    site.database()
        .execute_batch("CREATE TABLE allergy (id INTEGER PRIMARY KEY); CREATE TABLE scratch (x)")
        .unwrap();
    for table in ["allergy", "scratch"] {
        let text = format!("table {table} fits");
        status_with(&guardian, "CAP-03", is_found("CAP-03", &text)).await;
    }
    guardian.stop().await;
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    site.database()
        .execute_batch("INSERT INTO allergy VALUES (1)")
        .unwrap();
    change(&site, 1);
    acknowledged(&site, &guardian).await;
    let summary = guardian.scan().await.unwrap();
    assert_eq!((summary.findings, summary.rows), (vec![], 6));
    assert!(is_found("CAP-03", "allergy")(&guardian.status()));
    guardian.stop().await;
}
