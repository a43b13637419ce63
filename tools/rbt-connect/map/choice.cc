// What `auto` comes to on this machine.
#include <fmt/format.h>

#include "tools/rbt-connect/doctor/machine.h"
#include "tools/rbt-connect/map/presenters.h"

namespace rbt::tools::map {

namespace {

std::string words_of(const Presenter& presenter, const doctor::Finding& finding) {
  return fmt::format("{}: {}{}", name(presenter.via), finding.seen,
                     finding.remedy.empty() ? "" : fmt::format(" -> {}", finding.remedy));
}

}  // namespace

// What nobody will try needs no excuse: `skipped` ends at the first that works.
Result<Choice> choose(Via wanted, const std::vector<Presenter>& all, const doctor::Machine& machine) {
  Choice choice;
  for (const Presenter& each : all) {
    if (wanted != Via::automatic && each.via != wanted) continue;
    const doctor::Finding finding = each.examine(machine);
    // Partial is a file, or something else that is no block device.
    if (finding.verdict == doctor::Verdict::good)
      choice.candidates.push_back(&each);
    else if (choice.candidates.empty())
      choice.skipped.push_back(words_of(each, finding));
  }
  if (!choice.candidates.empty()) return choice;
  std::string reasons;
  for (const std::string& each : choice.skipped)
    reasons += (reasons.empty() ? "" : "\n  ") + each;
  const auto kind =
      doctor::has(machine, doctor::Capability::sys_admin) ? ErrorKind::unsupported : ErrorKind::permission;
  return failure(kind, wanted == Via::automatic
                           ? fmt::format("this machine, or this user, can make no block device:\n  {}", reasons)
                           : reasons);
}

const Presenter* find_presenter(std::string_view via) {
  for (const Presenter& each : presenters())
    if (name(each.via) == via) return &each;
  return nullptr;
}

}  // namespace rbt::tools::map
