//! Words that prompts are made of: common English ones, a single token in nearly every vocabulary when
//! a space stands before them.

use crate::random::Random;

const WORDS: &str = "time year people way day man thing woman life child world school state family student group \
country problem hand part place case week company system program question work government number \
night point home water room mother area money story fact month lot right study book eye job word \
business issue side kind head house service friend father power hour game line end member law \
car city community name president team minute idea kid body information back parent face others \
level office door health person art war history party result change morning reason research girl \
guy moment air teacher force education foot boy age policy music sense nation plan college \
interest death experience effect use class control care field development role effort rate heart \
drug show leader light voice wife police mind price report decision son hope view relationship \
town road drive arm difference value building action season society tax director position player \
record paper space ground form event official matter center couple site project activity star \
table need court oil situation cost industry figure street image phone data picture practice \
piece land product doctor wall patient worker news test movie north love support technology step \
baby computer type attention film tree source organization hair look window evidence culture \
chance brother energy period course summer plant opportunity term letter condition choice rule \
daughter south husband floor campaign material population call economy hospital church risk fire \
future bank box bill color green blue red white black small large young old new good high long \
little great early late hard able free full sure open common simple public strong whole short \
clear single general certain recent final main major nice close warm cold deep fast slow quiet \
bright river stone bridge garden market kitchen village island forest mountain winter spring \
silver gold glass bread butter sugar coffee apple orange horse dog cat bird fish train ship \
plane wheel engine track square circle corner middle bottom top front begin start stop turn move \
walk run play read write speak listen learn teach build break carry catch cover cross draw drop \
fall fill find follow give grow hang hear help hold keep know laugh lead leave lift live lose \
make mark meet miss pass pick pull push raise reach rest return ride ring rise roll save sell \
send serve set shake share shut sing sit sleep smile sort sound spend stand stay";

/// `count` random words, separated by spaces.
pub(crate) fn text(random: &mut Random, count: usize) -> String {
    let words = list();
    let mut text = String::with_capacity(count * 6);
    for index in 0..count {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(words[random.below(words.len() as u64) as usize]);
    }
    text
}

/// All words.
pub(crate) fn list() -> Vec<&'static str> {
    WORDS.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn texts_have_as_many_words_as_asked_for() {
        let text_of = |seed, count| text(&mut Random::new(&[seed]), count);
        for count in [0, 1, 500] {
            assert_eq!(text_of(1, count).split_whitespace().count(), count);
        }
        assert_eq!(text_of(1, 50), text_of(1, 50));
        assert_ne!(text_of(1, 50), text_of(2, 50));
    }

    #[test]
    fn no_word_is_there_twice() {
        let words = list();
        assert!(words.len() > 300, "{}", words.len());
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
    }
}
