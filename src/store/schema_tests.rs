//! The migrations, what a store says it is, and how connections are set up.

use rusqlite::StatementStatus;

use super::*;

fn new_file(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("a ?#%.db");
    std::fs::write(&path, b"").unwrap();
    path
}

#[test]
fn a_file_is_identified_without_touching_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    create(&mut conn, b"0123456789abcdef").unwrap();
    drop(conn);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let (bytes, listed) = (std::fs::read(&path).unwrap(), names());
    let identity = identify(&path).unwrap();
    assert_eq!(identity.application_id, APPLICATION_ID);
    assert_eq!(identity.version, VERSION);
    assert_eq!(
        identity.store_id.as_deref(),
        Some(b"0123456789abcdef".as_slice())
    );
    assert_eq!((std::fs::read(&path).unwrap(), names()), (bytes, listed));
}

#[test]
fn a_store_of_version_one_takes_only_the_steps_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    assert!(migrate(&mut conn, &[V1]).unwrap());
    conn.execute("INSERT INTO activity VALUES ('default', 'anna', 5)", [])
        .unwrap();
    let later = [
        V1,
        "ALTER TABLE activity ADD COLUMN extra INTEGER; UPDATE activity SET extra = 6",
    ];
    assert!(migrate(&mut conn, &later).unwrap());
    assert!(!migrate(&mut conn, &later).unwrap());
    let row: (i64, i64) = conn
        .query_row("SELECT last_active_at, extra FROM activity", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .unwrap();
    assert_eq!(row, (5, 6));
    assert_eq!(identity(&conn).unwrap().version, 2);
}

#[test]
fn the_step_to_stories_keeps_which_refresh_tokens_a_grant_has_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &[V1]).unwrap();
    conn.execute_batch(
        "INSERT INTO grants (id, namespace, user, provider, account, version, generation,
            standing, reason, standing_since, token_type, obtained_at, imported_at, failures,
            unused_refreshes, key_id)
         VALUES (7, '', 'anna', 'acme', '', 1, 3, 'active', '', 0, '', 0, 0, 0, 0, 1),
            (8, '', 'bert', 'acme', '', 1, 3, 'active', '', 0, '', 0, 0, 0, 0, 1);
         INSERT INTO fingerprints VALUES (7, x'0a02030405060708ffff', 3),
            (7, x'0b02030405060708ffff', 2), (9, x'0c02030405060708ffff', 1);",
    )
    .unwrap();
    assert!(upgrade(&mut conn).unwrap());
    let kept = |id: i64| {
        let sql = "SELECT hex(refresh_tokens) FROM grants WHERE id = ?1";
        conn.query_row(sql, [id], |row| row.get::<_, String>(0))
            .unwrap()
    };
    assert_eq!(
        kept(7),
        "0B020304050607080A02030405060708",
        "the newest last"
    );
    assert_eq!(kept(8), "");
    assert_eq!(identity(&conn).unwrap().version, VERSION);
}

#[test]
fn the_step_to_audits_adds_an_empty_table_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..4]).unwrap();
    conn.execute("INSERT INTO activity VALUES ('default', 'anna', 5)", [])
        .unwrap();
    assert!(upgrade(&mut conn).unwrap());
    let sql = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM activity)";
    let counts: (i64, i64) = conn
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(counts, (0, 1));
    assert_eq!(identity(&conn).unwrap().version, VERSION);
}

#[test]
fn a_grant_of_version_one_is_kept_by_the_step_to_breakers() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &[V1, V2]).unwrap();
    conn.execute_batch(
        "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
            reason, standing_since, token_type, obtained_at, due_at, imported_at, failures,
            unused_refreshes, key_id)
         VALUES ('default', 'ann', 'box', '', 4, 3, 'active', '', 1, 'Bearer', 2, 9, 3, 0, 0, 1);
         INSERT INTO providers (name, paused, margin_ms) VALUES ('box', 1, 300000);",
    )
    .unwrap();
    assert!(upgrade(&mut conn).unwrap());
    let row: (i64, i64, Option<i64>, Option<i64>) = conn
        .query_row(
            "SELECT generation, due_at, refused_since, refresh_token_warn_at FROM grants",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
        )
        .unwrap();
    assert_eq!(row, (3, 9, None, None));
    let row: (bool, Option<i64>, String) = conn
        .query_row(
            "SELECT paused, probe_at, schedule FROM providers",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
        .unwrap();
    assert_eq!(row, (true, None, "300000".to_owned()));
    assert_eq!(identity(&conn).unwrap().version, VERSION);
}

#[test]
fn a_store_from_before_there_were_events_keeps_them_from_the_first_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..3]).unwrap();
    conn.execute("INSERT INTO store VALUES (1, x'07')", [])
        .unwrap();
    assert!(upgrade(&mut conn).unwrap());
    conn.execute_batch(
        "INSERT INTO events (grant_id, namespace, provider, kind, at, generation)
         VALUES (3, 'default', 'box', 'paused', 9, 1)",
    )
    .unwrap();
    let row: (i64, i64) = conn
        .query_row(
            "SELECT events.id, events_after FROM events, store",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert_eq!(row, (1, 0), "none before it is missing");
    assert_eq!(identity(&conn).unwrap().store_id, Some(vec![7]));
}

#[test]
fn a_store_from_before_there_were_renewals_has_none_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..5]).unwrap();
    conn.execute("INSERT INTO providers (name, paused) VALUES ('box', 1)", [])
        .unwrap();
    assert!(upgrade(&mut conn).unwrap());
    let row: (bool, Option<i64>) = conn
        .query_row("SELECT paused, renew_before FROM providers", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .unwrap();
    assert_eq!(row, (true, None));
}

#[test]
fn a_store_from_before_the_ends_of_refresh_tokens_were_counted_has_those_that_were_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..6]).unwrap();
    let insert = "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
            reason, standing_since, token_type, obtained_at, imported_at, failures, unused_refreshes, key_id,
            refresh_token_expires_at, refresh_token_warn_at)
         VALUES ('d', ?1, 'box', '', 1, 1, ?2, '', 0, 'b', 0, 0, 0, 0, 1, ?3, ?4)";
    for (user, standing, ends, warns) in [
        ("announced", "active", Some(90), None),
        ("also", "paused", Some(70), None),
        ("not-yet", "active", Some(80), Some(60)),
        ("over", "active", Some(20), None),
        ("dead", "needs-authorization", Some(90), None),
        ("endless", "active", None, None),
    ] {
        conn.execute(insert, (user, standing, ends, warns)).unwrap();
    }
    assert!(upgrade(&mut conn).unwrap());
    let counted: (String, i64, i64) = conn
        .query_row(crate::store::ending::COUNTED, [50], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?))
        })
        .unwrap();
    assert_eq!(counted, ("box".to_owned(), 2, 70));
}

#[test]
fn a_store_from_before_failing_grants_were_counted_has_those_that_fail() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..7]).unwrap();
    let insert =
        "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
            reason, standing_since, token_type, obtained_at, imported_at, unused_refreshes, key_id,
            access_token, expires_at, failures, last_failure, refreshed_at)
         VALUES ('d', ?1, 'box', '', 1, 1, ?2, '', 0, 'b', 0, 7, 0, 1, ?3, ?4, ?5, ?6, ?7)";
    let token = Some(b"sealed".to_vec());
    for (user, standing, token, ends, failures, code, refreshed) in [
        ("ended", "active", &token, Some(40), 1, Some("dns"), Some(9)),
        ("often", "active", &token, Some(90), 3, Some("dns"), Some(8)),
        ("endless", "active", &token, None, 3, Some("dns"), Some(9)),
        ("never", "active", &None, None, 1, Some("http-503"), None),
        ("twice", "active", &token, Some(90), 2, Some("dns"), None),
        ("well", "active", &token, Some(40), 0, None, None),
        ("away", "paused", &token, Some(40), 9, Some("dns"), None),
    ] {
        let row = (user, standing, token, ends, failures, code, refreshed);
        conn.execute(insert, row).unwrap();
    }
    assert!(upgrade(&mut conn).unwrap());
    let mut counted = conn.prepare(crate::store::failing::COUNTED).unwrap();
    let counted: Vec<(String, i64, i64, i64, i64)> = counted
        .query_map([50], |r| {
            Ok((r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let both = [
        ("dns".to_owned(), 3, 1, 40, 8),
        ("http-503".to_owned(), 1, 1, 7, 7),
    ];
    assert_eq!(counted, both);
}

#[test]
fn a_store_from_before_its_triggers_could_fail_goes_on_counting() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    migrate(&mut conn, &MIGRATIONS[..8]).unwrap();
    let add = |conn: &Connection, user| {
        let sql = "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
            reason, standing_since, token_type, obtained_at, imported_at, failures, unused_refreshes, key_id)
         VALUES ('d', ?1, 'box', '', 1, 1, 'active', '', 0, 'b', 0, 0, 0, 0, 1)";
        conn.execute(sql, [user]).unwrap();
    };
    add(&conn, "ann");
    assert!(upgrade(&mut conn).unwrap());
    add(&conn, "bea");
    add(&conn, "cleo");
    conn.execute_batch(
        "UPDATE grants SET standing = 'paused', reason = 'admin' WHERE user = 'bea';
         UPDATE grants SET standing = 'paused', reason = 'admin' WHERE user = 'cleo';
         DELETE FROM grants WHERE user = 'cleo';",
    )
    .unwrap();
    let mut counters = conn
        .prepare("SELECT standing, grants FROM counters ORDER BY standing")
        .unwrap();
    let counters: Vec<(String, i64)> = counters
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        counters,
        [("active".to_owned(), 1), ("paused".to_owned(), 1)]
    );
}

#[test]
fn a_step_that_does_not_work_leaves_the_version_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    let broken = [V1, "CREATE TABLE half (a); SELECT nonsense"];
    assert!(migrate(&mut conn, &broken).is_err());
    assert_eq!(identity(&conn).unwrap().version, 1);
    assert!(
        conn.execute("SELECT a FROM half", []).is_err(),
        "the half step was undone"
    );
}

#[test]
fn every_writer_is_set_up_for_durability() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::from_millis(1234)).unwrap();
    create(&mut conn, b"0123456789abcdef").unwrap();
    let text = |name| {
        conn.pragma_query_value(None, name, |r| r.get::<_, String>(0))
            .unwrap()
    };
    let number = |name| {
        conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(text("journal_mode"), "wal");
    assert_eq!(number("synchronous"), 2, "FULL");
    assert_eq!(number("secure_delete"), 1);
    assert_eq!(number("wal_autocheckpoint"), 0);
    assert_eq!(number("temp_store"), 2, "MEMORY");
    assert_eq!(number("busy_timeout"), 1234);
    let reader = connect_reader(&path, Duration::ZERO).unwrap();
    assert!(reader.execute("DELETE FROM grants", []).is_err());
}

#[test]
fn a_cached_statement_is_compiled_once_however_often_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    create(&mut conn, b"0123456789abcdef").unwrap();
    for sql in [
        "SELECT g.id FROM grants g LEFT JOIN marks m ON m.grant_id = g.id WHERE g.id = ?1",
        "SELECT number FROM history WHERE grant_id = ?1 ORDER BY number DESC LIMIT 1",
        "UPDATE grants SET version = version + 1 WHERE id = ?1 AND generation = ?1",
    ] {
        for nth in 1..5 {
            let mut statement = conn.prepare_cached(sql).unwrap();
            let mut rows = statement.query([nth]).unwrap();
            assert!(rows.next().unwrap().is_none());
        }
        let statement = conn.prepare_cached(sql).unwrap();
        let again = statement.get_status(StatementStatus::RePrepare);
        assert_eq!(again, 0, "{sql}");
    }
}

#[test]
fn the_schedule_and_the_lists_are_read_from_their_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_file(dir.path());
    let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
    create(&mut conn, b"0123456789abcdef").unwrap();
    let troubled = "SELECT g.id FROM grants g WHERE g.id > ?1 AND g.standing = ?
         AND g.standing <> 'active' ORDER BY g.id LIMIT ?";
    let failing = format!(
        "SELECT g.id FROM grants g WHERE g.id > ?1{} ORDER BY g.id LIMIT ?",
        crate::store::failing::AMONG
    );
    for (sql, index) in [
        (crate::store::schedule::DUE_WITHIN, "grants_due"),
        (crate::store::schedule::RESCHEDULE, "grants_provider"),
        (troubled, "grants_troubled"),
        (crate::store::ending::COUNTED, "grants_ending"),
        (crate::store::failing::COUNTED, "grants_failing"),
        (&failing, "grants_failing"),
    ] {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let values = vec![1; plan.parameter_count()];
        let steps: Vec<String> = plan
            .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let steps = steps.join("; ");
        assert!(
            steps.contains(index) && !steps.contains("TEMP B-TREE"),
            "{steps}"
        );
        // The list goes from the index to the rows, never through all of them.
        assert!(!steps.contains("SCAN g;"), "{steps}");
        assert!(
            index != "grants_due" || steps.contains("COVERING INDEX"),
            "{steps}"
        );
    }
}
