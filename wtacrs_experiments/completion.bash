# Completion of the command wtacrs in bash: eval "$(wtacrs completion)", say in ~/.bashrc.
# In zsh, before it: autoload -U +X bashcompinit && bashcompinit
_wtacrs() {
    local word="${COMP_WORDS[COMP_CWORD]}" line="${COMP_LINE:0:COMP_POINT}" found=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        found="@COMMANDS@"
    elif [ "${COMP_WORDS[1]}" = run ]; then # Hydra knows the groups, choices and keys
        line="wtacrs ${line#*run }"
        found=$(COMP_LINE="$line" COMP_POINT="${#line}" wtacrs run -sc query=bash 2>/dev/null)
    fi
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/} # so that key=value is one word
complete -o nospace -o default -F _wtacrs wtacrs
