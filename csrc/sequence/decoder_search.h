// Beam searches with a decoder (decode.py says what they find). Each member takes sequences in groups, and a group goes
// through all steps, so that the weights and what it has of its memory stay near. A sequence is searched alike whatever is
// beside it.
#pragma once

#include "sequence/continuations.h"
#include "sequence/decoder.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kSearchBytes = 768 * 1024;  // of what the steps of a group read of its memory
static_assert(kSearchBeam <= kOneStepRows);

// What all members see: the arguments of the steps, by position, of which each member has some.
template <class T>
class SearchPlan {
  public:
    std::int64_t group, rows;  // sequences at a time, and their hypotheses
    DecoderArgs<T> args;
    std::int64_t *order, *first, *lengths, *places, *parents, *tokens;
    T* inputs;

    SearchPlan(const DecoderSearchArgs<T>& p, int members, Arena& arena) : args(p.decoder) {
        DecoderSizes& d = args.sizes;
        const DecoderShape<T> s(d);
        const std::int64_t read = (s.d.contexts ? s.gates : s.mp) + s.key_columns();
        const std::int64_t bytes = larger(1, s.d.S) * read * static_cast<std::int64_t>(sizeof(T));
        group =
            smaller(kSearchBytes / bytes, smaller(kOneStepRows / p.beam, (p.sequences - 1) / members + 1));
        group = larger(1, smaller(group, kSearchNodes / (p.beam * p.most)));
        rows = group * p.beam;
        d.B = members * rows, d.rows = 2 * d.B;
        order = arena.take<std::int64_t>(d.B);
        first = arena.take<std::int64_t>(d.B);
        lengths = arena.take<std::int64_t>(d.B);
        places = arena.take<std::int64_t>(d.B);
        parents = arena.take<std::int64_t>(d.B);
        tokens = arena.take<std::int64_t>(d.B);
        inputs = arena.take<T>(d.table > 0 ? 0 : d.B * d.I);
        args.tape = arena.take<char>(DecoderRows<T>(DecoderShape<T>(d), false, nullptr).bytes);
        args.schedule.order = order;
        args.memory_first = first, args.memory_lengths = lengths;
        args.places = places, args.parents = parents;
        args.tokens = d.table > 0 ? tokens : nullptr, args.x = inputs;
    }
};

template <class T>
class BeamSearch {
    // A tree of tokens, whose leaves are hypotheses.
    struct Node {
        std::int32_t parent, token;
    };
    struct Live {
        std::int64_t sequence, node;
    };

  public:
    struct Member {
        typename Decoder<T>::Member decoder;
        T* logits;
        const T** outputs;
        double *scratch, *scores;  // of continuations
        std::int32_t* from;
        Live *live, *next;  // by position
        double *totals, *next_totals;
        Node* nodes;
        std::int32_t count = 0;  // of nodes
        // Of each sequence: how many hypotheses are complete, and the best of these.
        std::int64_t* complete;
        double* best_scores;
        std::int32_t* best_from;
        Member(const DecoderSearchArgs<T>& p, const SearchPlan<T>& plan, Arena& arena)
            : decoder(DecoderShape<T>(plan.args.sizes), arena) {
            const std::int64_t n = plan.rows;
            logits = arena.take<T>(n * padded<T>(p.decoder.sizes.classes));
            outputs = arena.take<const T*>(n);
            scratch = arena.take<double>(continuation_scratch(p.decoder.sizes.classes));
            scores = arena.take<double>(2 * p.beam);
            from = arena.take<std::int32_t>(2 * p.beam);
            live = arena.take<Live>(n);
            next = arena.take<Live>(n);
            totals = arena.take<double>(n);
            next_totals = arena.take<double>(n);
            nodes = arena.take<Node>(n * (p.most + 2));  // fewer than two beams end
            complete = arena.take<std::int64_t>(plan.group);
            best_scores = arena.take<double>(plan.group * p.best);
            best_from = arena.take<std::int32_t>(plan.group * p.best);
        }
    };

    BeamSearch(const DecoderSearchArgs<T>& p, Team& team, void* workspace)
        : p_(p),
          arena_(workspace),
          plan_(p, team.size(), arena_),
          team_(team),
          head_(plan_.args.sizes, p.head),
          decoder_(plan_.args, team, nullptr) {
        for (std::int64_t i = 0; i < plan_.args.sizes.B; ++i) plan_.order[i] = i;
    }

    void run_member(int member) {
        Arena arena = arena_;
        for (int i = 0; i < member; ++i) Member(p_, plan_, arena);
        Member m(p_, plan_, arena);
        const Range mine = share(p_.sequences, team_.size(), member);
        for (std::int64_t b = mine.begin; b < mine.end; b += plan_.group) {
            const Range group{b, smaller(b + plan_.group, mine.end)};
            if (!run_group(m, member, group)) return;
            for (std::int64_t i = group.begin; i < group.end; ++i) store(m, group.begin, i);
        }
    }

  private:
    // False once the call was cancelled.
    bool run_group(Member& m, int member, Range group) {
        const std::int64_t first = member * plan_.rows, row = padded<T>(p_.decoder.sizes.classes);
        std::int64_t n = group.end - group.begin;
        m.count = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            m.live[i] = {group.begin + i, -1}, m.totals[i] = 0, m.complete[i] = 0;
            best(m, i).clear();
            p_.failed[group.begin + i] = -1;
            plan_.places[first + i] = group.begin + i;
            set_position(first + i, group.begin + i, p_.bos);
        }
        decoder_.begin({first, first + n});
        for (std::int64_t t = 0; t < p_.most && n > 0; ++t) {
            if (!decoder_.search_step(m.decoder, member, t, first, n)) return false;
            for (std::int64_t i = 0; i < n; ++i) m.outputs[i] = decoder_.output_after(t, first + i);
            if (team_.cancelled(member, n * row * (p_.decoder.sizes.H + 16))) return false;
            row_major_product<T>(plain_rows<T>(m.outputs, n, p_.decoder.sizes.H), head_.weight,
                                 p_.decoder.sizes.classes, head_.bias, 0, m.logits, row);
            n = advance(m, group.begin, first, t, n);
        }
        return true;
    }

    // What the hypothesis at a position looks at and reads next.
    void set_position(std::int64_t position, std::int64_t sequence, std::int64_t token) const {
        plan_.first[position] = p_.memory_first[sequence];
        plan_.lengths[position] = p_.memory_lengths[sequence];
        plan_.tokens[position] = token;
        if (plan_.args.tokens != nullptr) return;
        const std::int64_t I = p_.decoder.sizes.I;
        copy(p_.table + token * I, plan_.inputs + position * I, I);
    }

    Best best(Member& m, std::int64_t i) const {
        return {p_.best, m.best_scores + i * p_.best, m.best_from + i * p_.best};
    }

    // From the logits after the step t of n hypotheses those that go on; returns how many they are.
    std::int64_t advance(Member& m, std::int64_t group, std::int64_t first, std::int64_t t,
                         std::int64_t n) const {
        const std::int64_t classes = p_.decoder.sizes.classes, row = padded<T>(classes);
        const Best found{smaller(2 * p_.beam, p_.beam * classes), m.scores, m.from};
        std::int64_t going = 0;
        for (std::int64_t i = 0, end = 0; i < n; i = end) {
            const std::int64_t sequence = m.live[i].sequence, own = sequence - group;
            while (end < n && m.live[end].sequence == sequence) ++end;
            if (!continuations<T>({end - i, classes, row, m.logits + i * row, m.totals + i, nullptr}, found,
                                  m.scratch)) {
                p_.failed[sequence] = t;
                continue;
            }
            const auto continued = [&](std::int64_t k) {
                m.nodes[m.count] = {static_cast<std::int32_t>(m.live[i + found.from[k] / classes].node),
                                    static_cast<std::int32_t>(found.from[k] % classes)};
                return m.count++;
            };
            const auto complete = [&](double total, std::int64_t node) {
                ++m.complete[own];
                best(m, own).add(total / p_.divisors[t], node);
            };
            const auto ends = [&](std::int64_t k) { return found.from[k] % classes == p_.eos; };
            for (std::int64_t k = 0; k < smaller(p_.beam, found.n) && found.from[k] >= 0; ++k)
                if (ends(k)) complete(found.scores[k], continued(k));
            if (m.complete[own] >= p_.beam || nothing_better(best(m, own), found, ends)) continue;
            for (std::int64_t k = 0, kept = 0; k < found.n && found.from[k] >= 0 && kept < p_.beam; ++k) {
                if (ends(k)) continue;
                ++kept;
                const std::int64_t node = continued(k);
                if (t + 1 == p_.most) {
                    complete(found.scores[k], node);
                    continue;
                }
                m.next[going] = {sequence, node}, m.next_totals[going] = found.scores[k];
                plan_.parents[first + going] = first + i + found.from[k] / classes;
                set_position(first + going++, sequence, m.nodes[node].token);
            }
        }
        swap(m.live, m.next);
        swap(m.totals, m.next_totals);
        return going;
    }
    // Whether no continuation that goes on can become one of the best: log probabilities only fall, and divisors rise.
    template <class Ends>
    bool nothing_better(const Best& complete, const Best& found, const Ends& ends) const {
        std::int64_t k = 0;
        while (k < found.n && found.from[k] >= 0 && ends(k)) ++k;
        return k == found.n || complete.scores[p_.best - 1] >= found.scores[k] / p_.divisors[p_.most - 1];
    }
    template <class U>
    static void swap(U*& a, U*& b) {
        U* const other = a;
        a = b, b = other;
    }

    // The results of a sequence.
    void store(Member& m, std::int64_t group, std::int64_t sequence) const {
        p_.longest[sequence] = 0;
        for (std::int64_t k = 0; k < p_.best; ++k) {
            const std::int64_t place = sequence * p_.best + k;
            const Best found = best(m, sequence - group);
            std::int64_t* const tokens = p_.tokens + place * p_.most;
            std::int64_t count = 0;
            for (std::int32_t i = found.from[k]; i >= 0; i = m.nodes[i].parent) ++count;
            p_.longest[sequence] = larger(p_.longest[sequence], count);
            std::int64_t at = count;
            for (std::int32_t i = found.from[k]; i >= 0; i = m.nodes[i].parent)
                tokens[--at] = m.nodes[i].token;
            p_.scores[place] = found.scores[k];
            p_.lengths[place] = count - (count > 0 && tokens[count - 1] == p_.eos);
        }
    }

    const DecoderSearchArgs<T>& p_;
    Arena arena_;
    const SearchPlan<T> plan_;
    Team& team_;
    const DecoderHead<T> head_;
    Decoder<T> decoder_;
};

template <class T>
std::int64_t decoder_search_workspace(const DecoderSearchArgs<T>& args, int members) {
    Arena arena(nullptr);
    const SearchPlan<T> plan(args, members, arena);
    for (int i = 0; i < members; ++i) typename BeamSearch<T>::Member(args, plan, arena);
    return arena.used();
}

template <class T>
void decoder_search(const DecoderSearchArgs<T>& args, Team& team, void* workspace) {
    BeamSearch<T> search(args, team, workspace);
    team.run([](void* c, int member) { static_cast<BeamSearch<T>*>(c)->run_member(member); }, &search);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
