// A program that embeds librbt-target and changes its namespaces while it serves, as it is told on standard input:
//
//   namespaces_target URI[,URI…] NQN SPEC…      serves; says "ready", then obeys until the end of its input
//     add SPEC                           says "added NSID"
//     remove NSID                        says "removed NSID" at once and "gone NSID" later
//     refresh NSID                       says "refreshed NSID"
//     access PORT STATE                  of the listener at that port; says "access PORT STATE"
//
// What it cannot do it says, too: "error: …".

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/shared_arena.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "transport/verbs/fabric.h"

using namespace rbt;

namespace {

void say(const std::string& text) {
  std::printf("%s\n", text.c_str());  // one call: lines of two threads stay whole
  std::fflush(stdout);
}

int give_up(const Error& error) {
  say("error: " + error.message());
  return 1;
}

class Program {
 public:
  Program(target::Target& target, nvme::Nqn nqn, const target::StoreEnvironment& environment)
      : target_(target), nqn_(std::move(nqn)), environment_(environment) {}

  [[nodiscard]] Result<Nsid> add(const std::string& spec) {
    auto store = target::make_store(spec, environment_);
    if (!store) return failure(std::move(store.error()));
    return target_.add_namespace(nqn_, std::move(*store));
  }

  void obey(std::string_view line) {
    const auto space = line.find(' ');
    const std::string_view verb = line.substr(0, space);
    const std::string argument(space == std::string_view::npos ? "" : line.substr(space + 1));
    if (verb == "add") {
      const auto nsid = add(argument);
      say(nsid ? fmt::format("added {}", nsid->value()) : "error: " + nsid.error().message());
      return;
    }
    if (verb == "access") {
      const auto done = set_access(argument);
      say(done ? std::string(line) : "error: " + done.error().message());
      return;
    }
    std::uint32_t number = 0;
    std::from_chars(argument.data(), argument.data() + argument.size(), number);
    const Nsid nsid(number);
    Result<void> done;
    if (verb == "remove") {
      done = target_.remove_namespace(nqn_, nsid, [number](auto) { say(fmt::format("gone {}", number)); });
    } else if (verb == "refresh") {
      done = target_.refresh_namespace(nqn_, nsid);
    } else {
      done = failure(ErrorKind::invalid_argument, fmt::format("'{}' is not add, remove, refresh or access", line));
    }
    if (!done) {
      say("error: " + done.error().message());
    } else {
      say(fmt::format("{} {}", verb == "remove" ? "removed" : "refreshed", number));
    }
  }

  [[nodiscard]] Result<void> listen(transport::Fabric& fabric, std::string_view uris) {
    while (!uris.empty()) {
      const auto comma = uris.find(',');
      auto uri = Uri::parse(uris.substr(0, comma));
      if (!uri) return failure(std::move(uri.error()));
      if (auto listening = target_.listen(fabric, *uri); !listening) return failure(std::move(listening.error()));
      listeners_.push_back(std::move(*uri));
      uris = comma == std::string_view::npos ? "" : uris.substr(comma + 1);
    }
    return {};
  }

 private:
  [[nodiscard]] Result<void> set_access(const std::string& argument) {
    using nvme::AccessState;
    for (const Uri& listener : listeners_)
      for (const auto state : {AccessState::optimized, AccessState::non_optimized, AccessState::inaccessible,
                               AccessState::persistent_loss, AccessState::change})
        if (argument == fmt::format("{} {}", listener.port, name(state))) return target_.set_access(listener, state);
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not a port and a state", argument));
  }

  target::Target& target_;
  nvme::Nqn nqn_;
  std::vector<Uri> listeners_;
  target::StoreEnvironment environment_;
};

int serve(std::string_view uris, const nvme::Nqn& nqn, std::span<char*> specs) {
  const SystemClock clock;
  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::info);
  auto fabric = transport::verbs::Fabric::open(*logger);
  if (!fabric) return give_up(fabric.error());
  target::SharedArena arena;
  auto target = target::Target::open({.clock = clock, .logger = *logger, .random = random, .reactors = 2});
  if (!target) return give_up(target.error());
  if (auto added = (*target)->add_subsystem(nqn, {.allow_any_host = true}); !added) return give_up(added.error());
  Program program(**target, nqn, {.clock = clock, .random = random, .logger = *logger, .arena = &arena});
  for (const char* spec : specs)
    if (auto added = program.add(spec); !added) return give_up(added.error());
  if (auto listening = program.listen(**fabric, uris); !listening) return give_up(listening.error());
  if (auto started = (*target)->start(); !started) return give_up(started.error());
  say("ready");
  for (std::string line; std::getline(std::cin, line);)
    program.obey(line);
  (*target)->stop();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: namespaces_target URI[,URI...] NQN SPEC...\n");
    return 2;
  }
  const auto nqn = nvme::Nqn::parse(argv[2]);
  if (!nqn) return give_up(nqn.error());
  return serve(argv[1], *nqn, std::span(argv + 3, static_cast<std::size_t>(argc - 3)));
}
