use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;
use crate::refresh::grant::PauseReason;

const QUARANTINED: Standing = Standing::Paused(PauseReason::Quarantined);

/// What a read and an attempt get: (access token, refresh token, standing afterwards).
async fn tried(bench: &Bench, user: &str) -> (Option<String>, Option<String>, Standing) {
    let read = bench
        .store
        .readable(&key(user), at(7))
        .await
        .unwrap()
        .unwrap();
    let attempt = bench
        .store
        .attemptable(read.grant.id, at(8))
        .await
        .unwrap()
        .unwrap();
    (
        read.access_token.map(|token| token.expose().to_owned()),
        attempt.refresh_token.map(|token| token.expose().to_owned()),
        attempt.grant.standing,
    )
}

async fn three() -> Bench {
    let bench = Bench::new();
    for user in ["anna", "bert", "carl"] {
        bench.import(user).await;
    }
    bench
}

async fn expect_fine(bench: &Bench, user: &str) {
    let (access, refresh, standing) = tried(bench, user).await;
    assert_eq!(access, Some(format!("access-{user}")));
    assert_eq!(refresh, Some(format!("refresh-{user}")));
    assert_eq!(standing, Standing::Active);
}

#[tokio::test]
async fn edited_metadata_quarantines_its_grant_and_no_other() {
    let edits = [
        "expires_at = expires_at + 3600000",
        "expires_at = NULL",
        "scope = 'crm.read crm.write admin'",
        "scope = NULL",
        "generation = 2",
        "generation = -1",
        "key_id = 2",
        "account = 'work'",
        "namespace = 'other'",
        "provider = 'google'",
        "user = 'mallory'",
    ];
    for edit in edits {
        let bench = three().await;
        let id = bench.store.grant(&key("bert")).await.unwrap().unwrap().id;
        bench.edit(&format!("UPDATE grants SET {edit} WHERE user = 'bert'"));
        let edited = bench.store.grant_by_id(id).await.unwrap().unwrap().key;
        let read = bench.store.readable(&edited, at(7)).await.unwrap().unwrap();
        assert!(read.access_token.is_none(), "{edit}");
        assert_eq!(
            (read.grant.standing, read.grant.due_at),
            (QUARANTINED, None),
            "{edit}"
        );
        assert_eq!(read.grant.standing_since, at(7));
        let attempt = bench.store.attemptable(id, at(8)).await.unwrap().unwrap();
        assert!(attempt.refresh_token.is_none(), "{edit}");
        expect_fine(&bench, "anna").await;
        expect_fine(&bench, "carl").await;
    }
}

#[tokio::test]
async fn swapped_values_open_for_neither() {
    let bench = three().await;
    bench
        .sql()
        .execute_batch("CREATE TABLE old AS SELECT user, access_token FROM grants")
        .unwrap();
    bench.edit(
        "UPDATE grants SET access_token = (SELECT access_token FROM old
            WHERE old.user = iif(grants.user = 'anna', 'bert', 'anna'))
         WHERE user IN ('anna', 'bert')",
    );
    for user in ["anna", "bert"] {
        let (access, refresh, standing) = tried(&bench, user).await;
        assert_eq!((access, refresh), (None, Some(format!("refresh-{user}"))));
        assert_eq!(standing, QUARANTINED);
    }
    expect_fine(&bench, "carl").await;
}

#[tokio::test]
async fn a_refresh_token_never_serves_as_an_access_token_nor_the_other_way_round() {
    let bench = three().await;
    bench.edit("UPDATE grants SET access_token = refresh_token WHERE user = 'anna'");
    bench.edit("UPDATE grants SET refresh_token = access_token WHERE user = 'bert'");
    let anna = tried(&bench, "anna").await;
    assert_eq!(anna, (None, Some("refresh-anna".into()), QUARANTINED));
    // I4: the access token is fine and is served.
    let bert = tried(&bench, "bert").await;
    assert_eq!(bert, (Some("access-bert".into()), None, QUARANTINED));
    expect_fine(&bench, "carl").await;
}

#[tokio::test]
async fn a_value_of_an_older_generation_does_not_come_back() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench
        .sql()
        .execute("CREATE TABLE stolen AS SELECT * FROM grants", [])
        .unwrap();
    applied(bench.store.commit_tokens(commit(&grant, "second")).await);
    bench.edit("UPDATE grants SET refresh_token = (SELECT refresh_token FROM stolen)");
    let (access, refresh, standing) = tried(&bench, "anna").await;
    assert_eq!(
        (access.as_deref(), refresh, standing),
        (Some("access-second"), None, QUARANTINED)
    );
}

#[tokio::test]
async fn a_quarantine_is_written_once_and_counted() {
    let bench = three().await;
    bench.edit("UPDATE grants SET access_token = x'00' WHERE user = 'anna'");
    let first = bench
        .store
        .readable(&key("anna"), at(7))
        .await
        .unwrap()
        .unwrap()
        .grant;
    let again = bench
        .store
        .readable(&key("anna"), at(9))
        .await
        .unwrap()
        .unwrap()
        .grant;
    assert_eq!(first, again);
    let count = |standing, grants| Count {
        provider: "hubspot".into(),
        standing,
        grants,
    };
    let counts = bench.store.counts().await.unwrap();
    assert_eq!(counts, [count(Standing::Active, 2), count(QUARANTINED, 1)]);
}

#[tokio::test]
async fn resuming_a_quarantined_grant_tries_again_and_an_import_heals_it() {
    let bench = three().await;
    let store = &bench.store;
    let id = store.grant(&key("anna")).await.unwrap().unwrap().id;
    bench.edit("UPDATE grants SET refresh_token = x'00' WHERE user = 'anna'");
    assert_eq!(tried(&bench, "anna").await.2, QUARANTINED);
    store
        .set_standing(id, Standing::Active, Some(at(9)), By::Admin, at(9))
        .await
        .unwrap();
    assert_eq!(tried(&bench, "anna").await.2, QUARANTINED);

    // The very refresh token that was lost is in the history; here it is welcome.
    let known = Import {
        replace: false,
        ..replacing("anna", "anna")
    };
    assert!(matches!(
        store.import(known).await.unwrap(),
        Imported::Unchanged(_)
    ));
    let healed = store.import(replacing("anna", "anna")).await.unwrap();
    assert!(matches!(healed, Imported::Replaced(_)));
    expect_fine(&bench, "anna").await;
    assert_eq!(store.revocations_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn a_deleted_grant_with_a_broken_refresh_token_revokes_its_access_token() {
    let bench = three().await;
    bench.edit("UPDATE grants SET refresh_token = x'00' WHERE user = 'anna'");
    bench.edit("UPDATE grants SET refresh_token = x'00', access_token = x'00' WHERE user = 'bert'");
    bench
        .store
        .delete(&key("anna"), at(1), true)
        .await
        .unwrap()
        .unwrap();
    bench
        .store
        .delete(&key("bert"), at(1), true)
        .await
        .unwrap()
        .unwrap();
    let expected = [("hubspot".into(), TokenKind::Access, "access-anna".into())];
    assert_eq!(waiting_revocations(&bench.store).await, expected);
}

#[tokio::test]
async fn a_revocation_that_does_not_open_is_set_aside_and_the_others_go_on() {
    let edits = [
        "token = x'00'",
        "provider = 'evil'",
        "kind = 'access_token'",
        "kind = 'nonsense', provider = 'evil'",
        "token = (SELECT token FROM revocations WHERE id = 2)",
    ];
    for edit in edits {
        let bench = three().await;
        bench.store.delete(&key("anna"), at(1), true).await.unwrap();
        bench.store.delete(&key("bert"), at(1), true).await.unwrap();
        bench.edit(&format!("UPDATE revocations SET {edit} WHERE id = 1"));
        let expected = [("hubspot".into(), TokenKind::Refresh, "refresh-bert".into())];
        assert_eq!(waiting_revocations(&bench.store).await, expected, "{edit}");
        assert_eq!(bench.store.revocations_waiting().await.unwrap(), 1);
    }
}

/// Every byte of every file in the state directory.
fn bytes(bench: &Bench) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(bench.dir.path())
        .unwrap()
        .map(Result::unwrap);
    files
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[tokio::test]
async fn no_file_holds_a_token_or_the_key_in_any_spelling() {
    let bench = Bench::new();
    let (access, refresh) = ("canary/access+token=1", "canary/refresh+token=2");
    let tokens = TokenSet {
        access_token: Some(AccessToken::new(access)),
        refresh_token: Some(RefreshToken::new(refresh)),
        ..tokens("anna")
    };
    let store = &bench.store;
    store
        .import(Import {
            tokens: tokens.clone(),
            ..import("anna")
        })
        .await
        .unwrap();
    let grant = store.grant(&key("anna")).await.unwrap().unwrap();
    let set = TokenCommit {
        tokens: Arc::new(tokens),
        ..commit(&grant, "")
    };
    applied(store.commit_tokens(set).await);
    store
        .delete(&key("anna"), at(1), true)
        .await
        .unwrap()
        .unwrap();
    // Without this the search might look for something that is never there.
    assert_eq!(waiting_revocations(store).await[0].2, refresh);

    let escaped = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let mut needles = Vec::new();
    for secret in [access.as_bytes(), refresh.as_bytes(), bench.kek.bytes()] {
        needles.push(secret.to_vec());
        needles.push(STANDARD.encode(secret).into_bytes());
        needles.push(URL_SAFE_NO_PAD.encode(secret).into_bytes());
    }
    needles.extend([access, refresh].map(|text| escaped(text).into_bytes()));
    needles.push(b"canary".to_vec());
    let files = bytes(&bench);
    assert!(files.len() >= 5 && files.iter().any(|(name, _)| name == "freshd.db-wal"));
    for (name, content) in files {
        for needle in &needles {
            assert!(
                !contains(&content, needle),
                "{name}: {}",
                String::from_utf8_lossy(needle)
            );
        }
    }
}

#[tokio::test]
async fn a_deleted_grants_sealed_bytes_are_overwritten() {
    let bench = three().await;
    let sealed: Vec<u8> = bench
        .sql()
        .query_row(
            "SELECT refresh_token FROM grants WHERE user = 'bert'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let bench = bench.reopen().await;
    let holders = |bench: &Bench| {
        bytes(bench)
            .iter()
            .filter(|(_, b)| contains(b, &sealed))
            .count()
    };
    assert_eq!(holders(&bench), 1);
    bench
        .store
        .delete(&key("bert"), at(1), false)
        .await
        .unwrap()
        .unwrap();
    let bench = bench.reopen().await;
    assert_eq!(holders(&bench), 0);
}
