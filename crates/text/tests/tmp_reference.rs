//! x
use oarlock_text::Tokenizer; use oarlock_types::*;
#[test]
fn all() {
    let j: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("/tmp/G-qwen.json").unwrap()).unwrap();
    let s = |k: &str| j[k].as_array().unwrap().iter().map(|x| x.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let kinds = j["token_type"].as_array().unwrap().iter().map(|k| match k.as_u64().unwrap() {1=>TokenKind::Normal,3=>TokenKind::Control,4=>TokenKind::UserDefined,_=>TokenKind::Unused}).collect();
    let v = TokenizerSource::Bpe(BpeVocabulary { pre: "qwen2".into(), tokens: s("tokens"), kinds, merges: s("merges") });
    let t0 = std::time::Instant::now();
    let t = Tokenizer::new(&v).unwrap();
    println!("build {:?} max {}", t0.elapsed(), t.max_token_bytes());
    let r: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("/work/shared/reference/tokenization.json").unwrap()).unwrap();
    for c in r["cases"]["qwen2.5-coder-0.5b"].as_array().unwrap() {
        let ids = t.encode(c["text"].as_str().unwrap(), true).unwrap().iter().map(|t| t.0).collect::<Vec<_>>();
        let e = c["ids"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect::<Vec<_>>();
        assert_eq!(ids, e, "{}", c["text"]);
    }
    let g: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("/work/shared/reference/qwen2.5-coder-0.5b/generation.json").unwrap()).unwrap();
    for c in g["cases"].as_array().unwrap() {
        let ids = t.encode(c["rendered"].as_str().unwrap(), true).unwrap().iter().map(|t| t.0).collect::<Vec<_>>();
        let e = c["prompt_ids"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect::<Vec<_>>();
        assert_eq!(ids, e);
        let g = c["greedy"].as_array().unwrap().iter().map(|t| TokenId(t.as_u64().unwrap() as u32)).collect::<Vec<_>>();
        assert_eq!(t.decode(&g, true), c["greedy_text"].as_str().unwrap());
    }
    for u in [" ", "a", "\n", "<", "1", "🚀", "a ", "x\u{301}"] { let t0 = std::time::Instant::now(); let n = t.encode(&u.repeat((4<<20)/u.len()), true).map(|v| v.len()); println!("{u:?} {:?} {:?}", n, t0.elapsed()); }
}
